"""Ten classes of drawn 32×32 images, for machines that have neither dataset nor network."""

import numpy as np
from numpy.typing import NDArray

SIDE = 32  # pixels
NOISE = 0.06  # standard deviation of each pixel's own noise, on the [0, 1] scale
CHUNK = 2_000  # images drawn at once: about 200 MB of temporaries


# Each shape is a condition on coordinates in which its outline lies about 1 from the
# centre. The names are the classes; the order is that of their hues and stripes.
SHAPES = {
    "disc": lambda u, v: np.hypot(u, v) < 0.9,
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.8) < 0.22,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.8,
    "frame": lambda u, v: abs(np.maximum(abs(u), abs(v)) - 0.7) < 0.18,
    "triangle": lambda u, v: (v < 0.7) & (v > 2 * abs(u) - 1),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.28) & (np.hypot(u, v) < 1.1),
    "bar": lambda u, v: (abs(v) < 0.32) & (abs(u) < 1.15),
    "crescent": lambda u, v: (np.hypot(u, v) < 1) & (np.hypot(u - 0.5, v) > 0.75),
    "star": lambda u, v: np.hypot(u, v) < 0.65 + 0.35 * np.cos(5 * np.arctan2(v, u)),
    "dots": lambda u, v: np.hypot(abs(u) - 0.6, v) < 0.42,
}
CLASSES = tuple(SHAPES)


def draw(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """An image (32, 32, 3) for each label (N,): uint8 (N, 32, 32, 3).

    Shape tells the class. Hue and width of the stripes tell it roughly: each class has
    its own, and its neighbours' are within their spread. Place, size, angle, lightness
    and the background tell nothing.
    """
    chunks = np.split(labels, range(CHUNK, len(labels), CHUNK))
    return np.concatenate([draw_chunk(chunk, rng) for chunk in chunks])


def draw_chunk(
    labels: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.uint8]:
    def uniform(low: float, high: float) -> NDArray[np.float32]:
        """One number per image, to be combined with (N, 32, 32)."""
        return rng.uniform(low, high, (len(labels), 1, 1)).astype(np.float32)

    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    # Coordinates (N, 32, 32) of the object: moved, scaled, turned.
    dx, dy = x - uniform(11, 20), y - uniform(11, 20)
    size, angle = uniform(7, 12), uniform(-0.6, 0.6)
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / size
    v = (np.cos(angle) * dy - np.sin(angle) * dx) / size
    inside = np.zeros(u.shape, dtype=bool)
    for label, shape in enumerate(SHAPES.values()):
        of_class = labels == label
        inside[of_class] = shape(u[of_class], v[of_class])

    place = np.float32(labels[:, None, None]) / len(CLASSES)
    tint = colour(place + uniform(-0.15, 0.15))
    stripes = np.sin((4 + 8 * place + uniform(-2, 2)) * (u + v) + uniform(0, 6))
    body = tint * (uniform(0.5, 1) * (0.75 + 0.25 * stripes))[..., None]

    slope = uniform(-0.4, 0.4) * (x / SIDE - 0.5) + uniform(-0.4, 0.4) * (
        y / SIDE - 0.5
    )
    ground = colour(uniform(0, 1)) * uniform(0.2, 0.9)[..., None] + slope[..., None]
    images = np.where(inside[..., None], body, ground)
    images += NOISE * rng.standard_normal(images.shape, dtype=np.float32)
    return (255 * images.clip(0, 1)).round().astype(np.uint8)


def colour(hue: NDArray[np.float32]) -> NDArray[np.float32]:
    """RGB on the [0, 1] scale, in a new last axis, of a hue that repeats every 1."""
    thirds = np.arange(3, dtype=np.float32) / 3
    return 0.5 + 0.5 * np.cos(2 * np.pi * (hue[..., None] - thirds))
