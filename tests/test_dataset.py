"""From files or noise to batches: what is read, what is refused, what augmentation does."""

import errno
import hashlib
import inspect
import io
import multiprocessing
import os
import pickle
import re
import shutil
import sys
import tarfile
import tempfile
import tracemalloc
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import hypothesis.extra.numpy as some
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers import dataset, train_test
from helpers.loaders import usable_cores
from tests.shared import bytes_in_memory, raising

MEAN_COLOUR = 255 * np.array(dataset.CIFAR10_MEAN)


# --- image folders ---------------------------------------------------------------------


def fill(root):
    """Two training images and one test image a class, each of its own grey."""
    number = 0
    for split, copies in (("train", 2), ("test", 1)):
        for copy in range(copies):
            for name in dataset.CIFAR10_CLASSES:
                place = root / split / name
                place.mkdir(parents=True, exist_ok=True)
                grey = Image.new("RGB", (32, 32), (number, number, number))
                grey.save(place / f"{copy:03}-{number:03}.png")
                number += 1
    return root


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path)


@pytest.fixture
def read_only():
    """Runs a function on a folder that it has filled and can't write to any more."""
    if os.name != "posix":
        pytest.skip("needs permissions that bind")
    # What `run` needs, imported before it may read no more than anybody.
    import torchvision  # noqa: F401

    from helpers import download, image_folder  # noqa: F401

    # Not tmp_path, which nobody but its owner can look into.
    with tempfile.TemporaryDirectory() as place:
        root, user = Path(place), os.geteuid()

        def run(function, *args, **options):
            for path in (root, *root.rglob("*")):
                path.chmod(0o555)
            try:
                if user == 0:  # whom no permission binds
                    try:
                        os.seteuid(65534)
                    except OSError:  # a container that knows no other user
                        pytest.skip("needs permissions that bind")
                return function(root, *args, **options)
            finally:
                os.seteuid(user)

        yield root, run
        for path in (root, *root.rglob("*")):
            path.chmod(0o755)


def test_image_folder_is_read_in_the_order_of_its_names(folder):
    train, test = dataset.load_cifar10(folder)
    assert train.images.shape == (20, 32, 32, 3)
    assert train.images[:, 0, 0, 0].tolist() == list(range(20))
    assert train.labels.tolist() == list(range(10)) * 2
    assert test.labels.tolist() == list(range(10))
    assert train.classes == dataset.CIFAR10_CLASSES
    assert train.source == "CIFAR-10, PNG copy"
    assert sorted(path.name for path in folder.iterdir()) == ["test", "train"]


def test_names_that_differ_in_their_suffix_alone_are_in_order_too(folder):
    for number in range(20):  # in more orders than a disk is likely to give by chance
        for grey, suffix in enumerate(["png", "jpg"]):
            image = Image.new("RGB", (32, 32), (200 * grey,) * 3)
            image.save(folder / "train" / "cat" / f"1{number:02}.{suffix}")
    train, _ = dataset.load_cifar10(folder)
    greys = train.images[train.labels == 3][2:, 0, 0, 0]
    assert greys.tolist() == [200, 0] * 20
    assert train.source == "CIFAR-10, JPEG and PNG copy"


def test_image_folder_is_read_where_nothing_can_be_written(read_only):
    root, run = read_only
    fill(root)
    train, _ = run(dataset.load_cifar10, download=False)
    assert len(train) == 20


def test_read_only_folder_without_dataset_is_said_before_any_request(
    read_only, monkeypatch, capsys
):
    root, run = read_only
    monkeypatch.setattr("helpers.download.ARCHIVE_URLS", ("http://127.0.0.1:9/c",))
    sentence = (
        rf"^{re.escape(str(root))} cannot take cifar-10-.* \(Permission denied\): make"
        rf".*; nothing of CIFAR-10 was found in {re.escape(str(root))}$"
    )
    with pytest.raises(dataset.DatasetUnavailable, match=sentence):
        run(dataset.load_cifar10)
    assert capsys.readouterr().out == ""
    assert list(root.iterdir()) == []


def test_folder_of_the_batches_themselves_is_told_from_the_one_above(tmp_path):
    (tmp_path / "data_batch_1").touch()
    with pytest.raises(
        ValueError, match="name the folder that has cifar-10-batches-py"
    ):
        dataset.load_cifar10(tmp_path)


def test_images_that_are_not_rgb_are_converted_and_said_in_one_warning(folder):
    files = {p.name: p for p in folder.rglob("*.png")}
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(files["000-003.png"], transparency=b"\x80\x40")
    Image.new("L", (32, 32), 77).save(files["000-001.png"])
    Image.new("LA", (32, 32), (66, 0)).save(files["000-005.png"])
    Image.new("RGBA", (32, 32), (1, 2, 3, 4)).save(files["000-022.png"])
    with pytest.warns(UserWarning) as said:
        train, test = dataset.load_cifar10(folder)
    [warning] = said
    assert str(warning.message) == (
        "4 of 30 images are not RGB and were converted to it, without alpha; "
        f"the first is {files['000-001.png']}"
    )
    assert warning.filename == __file__
    assert (
        train.images[[1, 3, 5]] == [[[[77] * 3]], [[[10, 20, 30]]], [[[66] * 3]]]
    ).all()
    assert (test.images[2] == [1, 2, 3]).all()


def test_what_file_managers_hide_in_an_image_folder_is_passed_over(folder):
    before, _ = dataset.load_cifar10(folder)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (folder / "train" / "cat" / name).touch()
        (folder / "train" / name).touch()
    after, _ = dataset.load_cifar10(folder)
    assert after.fingerprint() == before.fingerprint()


def test_class_of_files_with_names_in_any_script(folder):
    place = folder / "train" / "cat"
    image = next(place.iterdir()).read_bytes()
    shutil.rmtree(place)
    place.mkdir()
    for number in range(11):
        (place / f"Größe-猫-🐈-{number:05}.png").write_bytes(image)
    train, _ = dataset.load_cifar10(folder)
    assert Counter(train.labels.tolist()) == {i: 11 if i == 3 else 2 for i in range(10)}
    assert (train.images[train.labels == 3] == 3).all()


def truncate(path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])


def make_folder(path):
    path.unlink()
    path.mkdir()


DEEP = Image.fromarray(np.full((32, 32), 40_000, dtype=np.uint16))
# What becomes of train/dog/000-005.png, or of the folder it is in.
DAMAGE = {
    r"000-005.png is 32×33 pixels and must be 32×32": (
        lambda path: Image.new("RGB", (33, 32)).save(path)
    ),
    r"005.png \(8 bytes\) can't be read as PNG or JPEG; replace or": (
        lambda path: path.write_bytes(b"no image")
    ),
    r"005.png \(1,500 bytes\) can't be read .*\(image file is trunc": truncate,
    r"000-005.png has 16 bits per channel; make it 8 or remove it": DEEP.save,
    r"000-005.png \(.* bytes\) can't be read as PNG or JPEG; repl": (
        lambda path: Image.new("L", (32, 32)).save(path, format="GIF")
    ),
    r"000-005.png is neither PNG nor JPEG file; move it elsewhere": make_folder,
    r"link.png is neither PNG nor JPEG file; move it elsewhere": (
        lambda path: (path.parent / "link.png").symlink_to("nowhere.png")
    ),
    r"notes.txt is neither PNG nor JPEG": (
        lambda path: (path.parent / "notes.txt").write_text("a note")
    ),
    r"train/hound is none of the classes airplane, .*; rename it or": (
        lambda path: path.parent.rename(path.parents[1] / "hound")
    ),
    r"test/ship is missing or empty; each of the classes airplane": (
        lambda path: shutil.rmtree(path.parents[2] / "test" / "ship")
    ),
    r"test is missing; an image folder has train": (
        lambda path: shutil.rmtree(path.parents[2] / "test")
    ),
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_broken_image_folder_is_one_sentence_that_names_the_place(folder, sentence):
    DAMAGE[sentence](folder / "train" / "dog" / "000-005.png")
    with pytest.raises(ValueError, match=sentence):
        dataset.load_cifar10(folder)


def test_disk_that_fails_is_not_blamed_on_the_image(folder, monkeypatch):
    fault = OSError(errno.EIO, "Input/output error", "000-005.png")
    monkeypatch.setattr(Image, "open", raising(fault))
    with pytest.raises(OSError, match="Input/output error: '000-005.png'$"):
        dataset.load_cifar10(folder)


def test_root_in_the_home_folder_is_found(folder, monkeypatch):
    monkeypatch.setenv(
        "HOME" if os.name == "posix" else "USERPROFILE", str(folder.parent)
    )
    train, _ = dataset.load_cifar10(f"~/{folder.name}", download=False)
    assert len(train) == 20


def test_root_that_is_a_file_is_said(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(ValueError, match="data is a file"):
        dataset.load_cifar10(tmp_path / "data")


def test_file_in_the_way_of_the_root_is_said(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(dataset.DatasetUnavailable, match="no CIFAR-10 in .*below"):
        dataset.load_cifar10(tmp_path / "data" / "below", download=False)
    with pytest.raises(
        dataset.DatasetUnavailable, match="below cannot take .*Not a dir"
    ):
        dataset.load_cifar10(tmp_path / "data" / "below")


def test_archive_that_cannot_be_read_is_unavailable(tmp_path, monkeypatch):
    refused = raising(PermissionError(errno.EACCES, "Permission denied"))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    monkeypatch.setattr("helpers.download.has_md5", refused)
    *_, reason = dataset.load_or_draw(tmp_path, train_images=10, test_images=10)
    assert "cifar-10-python.tar.gz" in reason
    assert "Permission denied" in reason
    assert "nothing of CIFAR-10" not in reason  # which is there


def test_damaged_archive_is_not_taken_for_the_dataset(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half of it")
    with pytest.raises(
        dataset.DatasetUnavailable, match="tar.gz with the MD5 c58f30108"
    ):
        dataset.load_cifar10(tmp_path, download=False)


def test_nothing_there_and_no_download_says_what_to_put_there(tmp_path):
    with pytest.raises(dataset.DatasetUnavailable, match="put one there or allow"):
        dataset.load_cifar10(tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []


# --- official batches ------------------------------------------------------------------


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """A root with small files in the official format, and torchvision told their MD5."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import calculate_md5

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return [name, calculate_md5(base / name)]

    def batch(first):
        pixels = np.full((4, 3072), first, dtype=np.uint8)
        return {"data": pixels, "labels": [first % 10] * 4}

    train = [write(f"data_batch_{i}", batch(i)) for i in range(1, 6)]
    test = [write("test_batch", batch(9))]
    names = write("batches.meta", {"label_names": list(dataset.CIFAR10_CLASSES)})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    meta = {"filename": names[0], "key": "label_names", "md5": names[1]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return tmp_path


def test_official_batches_come_first_and_are_called_cifar10(batches, folder):
    assert batches == folder  # the image folder lies in the same root
    train, test = dataset.load_cifar10(batches)
    assert train.source == test.source == "CIFAR-10"
    assert train.labels.tolist() == [i for i in range(1, 6) for _ in range(4)]
    assert (train.images[:4] == 1).all()
    assert train.images.shape == (20, 32, 32, 3)
    # torchvision's is a view; a gather from one copies all images for each batch.
    assert train.images.flags.c_contiguous
    assert test.labels.tolist() == [9] * 4


def test_nothing_is_written_where_the_batches_are_there(batches):
    before = {path: path.stat().st_mtime_ns for path in batches.rglob("*")}
    dataset.load_cifar10(batches)
    assert {path: path.stat().st_mtime_ns for path in batches.rglob("*")} == before


@pytest.fixture
def archive(batches, monkeypatch):
    """The official archive of these batches, beside them."""
    from helpers import download

    path = batches / download.ARCHIVE_NAME
    with tarfile.open(path, "w:gz") as tar:
        tar.add(batches / "cifar-10-batches-py", "cifar-10-batches-py")
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(download, "ARCHIVE_MD5", md5)
    monkeypatch.setattr(download, "ARCHIVE_BYTES", path.stat().st_size)
    return path


def test_archive_in_the_root_is_extracted_and_read(batches, archive):
    shutil.rmtree(batches / "cifar-10-batches-py")
    for _ in range(2):  # the second time from the batches
        train, test = dataset.load_cifar10(batches, download=False)
        assert (len(train), len(test), train.source) == (20, 4, "CIFAR-10")


def test_altered_batch_is_replaced_from_the_archive_and_kept(batches, archive):
    folder = batches / "cifar-10-batches-py"
    (folder / "data_batch_3").write_bytes(b"other")
    with pytest.warns(UserWarning) as said:
        train, _ = dataset.load_cifar10(batches)
    assert {warning.filename for warning in said} == {__file__}
    first, second = (str(warning.message) for warning in said)
    assert "is not the official dataset" in first
    assert second == f"what was in {folder} is in {folder}.replaced now"
    assert (batches / f"{folder.name}.replaced/data_batch_3").read_bytes() == b"other"
    assert len(train) == 20


# --- any folder at all -----------------------------------------------------------------

# Without / and NUL, which no name can have, and as bytes on systems that take any.
NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='/\\:*?"<>|'),
    min_size=1,
    max_size=12,
).filter(lambda name: name.strip(". ") == name)
if sys.platform == "linux":
    NAMES |= st.binary(min_size=1, max_size=12).map(os.fsdecode)
    NAMES = NAMES.filter(lambda name: not set(name) & {"/", "\0"} and name.strip("."))
GREYS = st.integers(0, 255)


def encoded(image, file_format="PNG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


@st.composite
def contents(draw):
    """(bytes, colour of the 32×32 pixels they stand for, whether they are RGB).

    The colour is None where they stand for none, and "any" where they may.
    """
    kind = draw(
        st.sampled_from(["RGB", "JPEG", "L", "RGBA", "P", "odd", "cut", "bytes"])
    )
    grey = draw(GREYS)
    image = Image.new("RGB", (32, 32), (grey, grey, grey))
    if kind in ("RGB", "JPEG"):
        return encoded(image, "PNG" if kind == "RGB" else kind), grey, True
    if kind in ("L", "RGBA"):
        return encoded(image.convert(kind)), grey, False
    if kind == "P":
        palette = Image.new("P", (32, 32), 1)
        palette.putpalette([0, 0, 0, grey, grey, grey])
        return encoded(palette, transparency=draw(st.binary(max_size=2))), grey, False
    if kind == "odd":
        size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
        colour = grey if size == (32, 32) else None
        return encoded(Image.new("L", size, grey)), colour, False
    if kind == "bytes":
        return draw(st.binary(max_size=100)), None, False
    whole = bytearray(encoded(image, draw(st.sampled_from(["PNG", "JPEG"]))))
    for _ in range(draw(st.integers(1, 3))):
        whole[draw(st.integers(0, len(whole) - 1))] = draw(st.integers(0, 255))
    return bytes(whole[: draw(st.integers(0, len(whole)))]), "any", False


@st.composite
def trees(draw):
    """{path under the root: contents}: an image folder, with more and with less in it."""
    grey = draw(GREYS)
    usual = encoded(Image.new("RGB", (32, 32), (grey, grey, grey))), grey, True
    splits = st.sampled_from(["train", "test"])
    classes = st.sampled_from(dataset.CIFAR10_CLASSES)
    suffixes = st.sampled_from([".png"] * 6 + [".jpg", ".PNG", ".jpeg", ".gif", ""])
    tree = {
        f"{split}/{name}/{grey}.png": usual
        for split in ("train", "test")
        for name in dataset.CIFAR10_CLASSES
    }
    if draw(st.integers(0, 3)) == 0:
        gone = draw(
            st.sampled_from(["train/", "test/", "train/cat/", "test/dog/", "t"])
        )
        tree = {path: what for path, what in tree.items() if not path.startswith(gone)}
    many = st.integers(0, 5)
    for _ in range(draw(many)):
        place = f"{draw(splits)}/{draw(classes)}"
        tree[f"{place}/{draw(NAMES)}{draw(suffixes)}"] = draw(contents())
    if draw(many) == 0:
        tree[f"{draw(splits)}/{draw(NAMES)}/a.png"] = draw(contents())
    if draw(many) == 0:
        tree[f"{draw(splits)}/{draw(NAMES)}"] = draw(contents())
    junk = st.sampled_from(
        [
            "cifar-10-python.tar.gz",
            "cifar-10-python.tar.gz.part",
            "cifar-10-batches-py/data_batch_1",
            "cifar-10-batches-py/batches.meta/a",
        ]
    )
    for path in draw(st.lists(junk, max_size=2)):
        tree[path] = draw(st.binary(max_size=100)), None, False
    return tree


def plant(root, tree):
    """Write the tree; return what of it is there, without what two names fell together."""
    planted = {}
    for path, what in tree.items():
        place = root / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(place, "xb") as file:
                file.write(what[0])
        except (FileExistsError, IsADirectoryError, NotADirectoryError):
            continue
        planted[path] = what
    return planted


def promised(planted, split):
    """[(label, contents)] that an image folder with these files has to give, or None."""
    files = []
    for path, what in planted.items():
        above, *below = path.split("/")
        if above != split or any(part.startswith(".") for part in below):
            continue
        if len(below) != 2 or below[0] not in dataset.CIFAR10_CLASSES:
            return None
        stem, dot, suffix = below[1].rpartition(".")
        if not dot or suffix.lower() not in ("png", "jpg", "jpeg") or what[1] is None:
            return None
        label = dataset.CIFAR10_CLASSES.index(below[0])
        files.append((stem, label, below[1], what))
    files.sort(key=lambda file: file[:3])
    found = [(label, what) for _, label, _, what in files]
    return found if {label for label, _ in found} == set(range(10)) else None


@given(trees())
def test_any_tree_gives_what_is_written_there_or_one_sentence(tree):
    with (
        tempfile.TemporaryDirectory() as place,
        warnings.catch_warnings(record=True) as w,
    ):
        warnings.simplefilter("always")
        planted = plant(Path(place), tree)
        want = [promised(planted, split) for split in ("train", "test")]
        unsure = any(what[1] == "any" for found in want for _, what in found or ())
        try:
            sets = dataset.load_cifar10(place, download=False)
        except (ValueError, dataset.DatasetUnavailable) as error:
            assert None in want or unsure
            assert place in str(error)
            return
        assert None not in want
        for found, given_ in zip(want, sets, strict=True):
            assert given_.labels.tolist() == [label for label, _ in found]
            for image, (_, (_, grey, _)) in zip(given_.images, found, strict=True):
                assert grey == "any" or abs(image.astype(int) - grey).max() <= 1
        said = [str(one.message) for one in w if "not RGB" in str(one.message)]
        odd = sum(not rgb for found in want for _, (_, _, rgb) in found)
        assert unsure or said == [text for text in said[:1] if odd]
        assert unsure or not odd or said[0].startswith(f"{odd} of ")
        again = dataset.load_cifar10(place, download=False)
        assert [s.fingerprint() for s in again] == [s.fingerprint() for s in sets]


# --- image sets ------------------------------------------------------------------------


def image_set(count=40, classes=4, side=32, channels=3):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    names = tuple(f"class {i}" for i in range(classes))
    return dataset.ImageSet(images, np.arange(count) % classes, names, "noise")


@pytest.mark.parametrize("label", [-1, 4])
def test_label_outside_the_classes_is_named_with_its_image(label):
    data = image_set()
    labels = data.labels.copy()
    labels[7] = label
    with pytest.raises(ValueError, match=f"label {label} of image 7 is outside the 4"):
        dataset.ImageSet(data.images, labels, data.classes, "noise")


PIXELS = image_set().images
FLOATS = PIXELS / 255


@pytest.mark.parametrize(
    ("images", "remedy"),
    [
        (
            FLOATS,
            "(255 * images).round().clip(0, 255).astype(np.uint8) converts those from 0",
        ),
        (FLOATS > 0.5, "(255 * images).round().clip(0, 255)"),
        (1.03 * FLOATS, "(255 * images).round().clip(0, 255)"),
        (255 * FLOATS, "images.astype(np.uint8) converts those from 0 to 255"),
        (FLOATS[:0], "images.astype(np.uint8)"),
        (
            257 * PIXELS.astype(int),
            "(images / 65535 * 255).round().astype(np.uint8) converts",
        ),
        (2 * FLOATS - 1, "they go down to -1; give them as they were before normal"),
        (np.where(FLOATS > 0.9, np.nan, FLOATS), "they hold NaN or infinity"),
        (PIXELS[0], "images[None] makes a set of one picture"),
        (PIXELS[..., 0], "images[..., None] adds one channel"),
        (PIXELS.reshape(40, -1), "images.reshape(-1, H, W, C) gives rows of pixels"),
        (np.array([[1, 2], [3]], object), "np.stack makes it of pictures of one size"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_images_of_another_type_or_shape_are_refused_with_what_converts_them(
    images, remedy
):
    data = image_set()
    said = f"^images must be uint8.*; of a NumPy array, {re.escape(remedy)}"
    with pytest.raises(ValueError, match=said):
        dataset.ImageSet(images, data.labels, data.classes, "noise")


def test_conversion_that_is_named_gives_the_same_pixels_again():
    every = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    for images in (np.float32(every) / 255, np.float64(every), np.uint16(every) * 257):
        with pytest.raises(ValueError, match="of a NumPy array") as said:
            dataset.ImageSet(images, np.arange(4), ("a", "b", "c", "d"), "all")
        named = re.search(r"of a NumPy array, (\S.*?\)) converts", str(said.value))[1]
        assert np.array_equal(eval(named, {"images": images, "np": np}), every)


def test_floats_that_became_black_images_are_warned_of():
    data = image_set()
    with pytest.warns(UserWarning, match="white is 255; convert floats from 0 to 1"):
        replace(data, images=FLOATS.astype(np.uint8))
    replace(data, images=np.zeros_like(data.images))  # as a painter begins


def test_labels_of_another_type_and_lists_are_refused():
    data = image_set()
    with pytest.raises(ValueError, match=r"labels must be integers \(40,\)"):
        dataset.ImageSet(data.images, data.labels[:-1], data.classes, "noise")
    with pytest.raises(ValueError, match=r"float32 .*\.astype\(np\.int64\)"):
        dataset.ImageSet(
            data.images, data.labels.astype("float32"), data.classes, "noise"
        )
    with pytest.raises(TypeError, match="not a list; np.stack makes one"):
        dataset.ImageSet(list(data.images), data.labels, data.classes, "noise")


def test_batch_size_may_be_numpys():
    made = loaders(batch_size=np.int64(16)).train
    assert made.batch_sizes == [16, 16, 8]
    assert all(type(size) is int for size in made.batch_sizes)


@pytest.mark.parametrize("on", ["cpu", "device"])
def test_augmentation_by_numpys_numbers_is_that_by_pythons(on):
    given = {"padding": 2, "flip": 0.5, "cutout": 3}
    numpys = {
        n: np.float32(v) if n == "flip" else np.uint8(v) for n, v in given.items()
    }
    pairs = zip(loaders(on=on, **given).train, loaders(on=on, **numpys).train)
    assert all(torch.equal(a, b) for (a, _), (b, _) in pairs)


@pytest.mark.parametrize("kind", [np.uint8, list, torch.tensor])
def test_class_numbers_of_any_kind_are_taken(kind):
    data = image_set()
    images, labels = torch.from_numpy(data.images), kind([0, 3] * 20)
    if kind is np.uint8:
        labels = np.array([0, 3] * 20, kind)
    made = dataset.ImageSet(images, labels, data.classes, "noise")
    assert made.labels.dtype == np.int64
    assert made.labels.tolist() == [0, 3] * 20
    assert np.array_equal(made.images, data.images)


def test_fingerprint_is_what_older_records_and_checkpoints_hold():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    data = dataset.ImageSet(images, np.array([1, 0]), ("a", "b"), "counted")
    assert data.fingerprint() == "b06b4814b21b6dc8"


def test_image_set_is_shown_in_a_line():
    shown = repr(image_set())
    assert shown == "ImageSet(40 images of 32×32×3, 4 classes, noise)"


def test_two_image_sets_are_two_whatever_they_hold():
    data, same = image_set(), image_set()
    assert data != same
    assert len({data, same}) == 2


@pytest.mark.parametrize("on", ["cpu", "device"])
def test_images_that_are_views_are_taken_and_are_the_same_images(on):
    data = image_set()
    turned = dataset.ImageSet(
        data.images[..., ::-1], data.labels[::-1], data.classes, "turned"
    )
    copied = dataset.ImageSet(
        turned.images.copy(), turned.labels.copy(), data.classes, "copied"
    )
    assert turned.fingerprint() == copied.fingerprint()
    one, other = (epoch(loaders(each, on=on).train) for each in (turned, copied))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize(
    ("test", "sentence"),
    [
        (image_set(side=8), "make them one size"),
        (image_set().take(np.arange(0)), "the test set is empty"),
        (replace(image_set(), classes=image_set().classes[::-1]), "different classes"),
    ],
)
def test_test_set_that_does_not_fit_makes_no_loaders(test, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataset.make_loaders(image_set(), test, device="cpu", batch_size=8)


def test_train_transform_moves_and_flips_as_it_is_told():
    y, x = np.mgrid[:8, :8]
    image = np.stack([30 * y, 30 * x, 0 * x], -1).astype(np.uint8)
    plain = {"size": (8, 8), "cutout": 0, "mean": (0,) * 3, "std": (1,) * 3}
    flipped = dataset.train_transform(padding=0, flip=1, **plain)(image=image)["image"]
    assert np.allclose(255 * flipped.permute(1, 2, 0), image[:, ::-1])
    moved = dataset.train_transform(padding=2, flip=0, seed=0, **plain)
    seen = [255 / 30 * moved(image=image)["image"] for _ in range(200)]
    for channel, row, column in ((0, 4, 0), (1, 0, 4)):
        found = {round(float(each[channel, row, column])) for each in seen}
        assert found == set(range(2, 7))


def test_float_image_is_refused_by_the_transforms():
    image = image_set().images[0]
    for transform in (dataset.eval_transform(), dataset.train_transform()):
        with pytest.raises(ValueError, match="float32 and must be uint8"):
            transform(image=image.astype(np.float32) / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_their_channels_first_are_refused(channels):
    images = image_set().images[..., :channels].transpose(0, 3, 1, 2)
    labels = image_set().labels
    with pytest.raises(ValueError, match=r"transpose\(0, 2, 3, 1\) turns them"):
        dataset.ImageSet(images, labels, dataset.CIFAR10_CLASSES, "turned")


def test_batches_are_made_of_the_images_that_are_there_and_not_of_copies():
    data = image_set()
    made = [loaders(data, on=on, cutout=0).train for on in ("device", "cpu")]
    data.images[:] = 255
    for loader in made:
        assert (pixels(epoch(loader)[0]).round() == 255).all()


@pytest.mark.parametrize(("processes", "cores"), [(1, 24), (2, 12), (48, 1)])
def test_processes_that_share_a_machine_share_its_cores(processes, cores, monkeypatch):
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda _: set(range(24)), raising=False
    )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert usable_cores() == cores


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_map_is_not_read_before_it_is_used(tmp_path):
    shape = (40_000, 32, 32, 3)
    new = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, shape)
    new[0] = 255  # the others stay zeros, which take no place on the disk
    del new
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    before = bytes_in_memory()
    data = dataset.ImageSet(mapped, np.zeros(40_000, np.int64), ("one",), "mapped")
    assert bytes_in_memory() - before < data.images.nbytes / 2


def test_memory_map_is_not_copied(tmp_path):
    data = image_set()
    np.save(tmp_path / "images.npy", data.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    labels = data.labels.copy()
    labels.setflags(write=False)
    held = replace(data, images=mapped, labels=labels)
    assert np.shares_memory(held.images, mapped)
    for on in ("cpu", "device"):  # nor does torch warn of what it can't write to
        one, other = (epoch(loaders(d, on=on).train)[0] for d in (held, data))
        assert torch.equal(one, other)


def test_mean_and_std_are_those_of_all_pixels():
    images = np.random.default_rng(0).integers(0, 256, (2_500, 4, 5, 2), np.uint8)
    data = dataset.ImageSet(images, np.zeros(2_500, np.int64), ("a",), "noise")
    mean, std = data.mean_std()
    assert mean == pytest.approx(images.mean((0, 1, 2)) / 255)
    assert std == pytest.approx(images.std((0, 1, 2)) / 255)
    plain = {"padding": 0, "cutout": 0, "mean": mean, "std": std}
    ((normalized, _),) = loaders(data, batch_size=2_500, **plain).test
    assert normalized.mean((0, 2, 3)).abs().max() < 1e-5
    assert normalized.std((0, 2, 3), correction=0) == pytest.approx(1, abs=1e-5)


def test_mean_of_no_images_is_said():
    none, _ = dataset.synthetic_cifar10(train=0, test=1)
    with pytest.raises(ValueError, match="synthetic.*: there are no images"):
        none.mean_std()


def test_mean_and_std_of_large_images_take_less_memory_than_they_do():
    images = np.random.default_rng(0).integers(0, 256, (24, 1000, 1000, 1), np.uint8)
    data = dataset.ImageSet(images, np.zeros(24, np.int64), ("a",), "noise")
    tracemalloc.start()
    try:
        mean, std = data.mean_std()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < images.nbytes
    assert (mean[0], std[0]) == pytest.approx((images.mean() / 255, images.std() / 255))


def test_what_is_no_image_set_is_refused():
    with pytest.raises(TypeError, match="takes ImageSets, not a list"):
        dataset.make_loaders([], [], device="cpu")


def own(*steps):
    import albumentations as A

    return A.Compose([getattr(A, name)(**fields) for name, fields in steps])


def test_holes_alone_need_no_albumentations(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    assert len(epoch(loaders(on="cpu", padding=0, flip=0, cutout=4).train)[0]) == 40
    with pytest.raises(ModuleNotFoundError, match="pip install albumentations"):
        loaders(on="cpu", padding=0)


def test_albumentations_is_kept_from_asking_for_its_newest_version(monkeypatch):
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE")
    dataset.train_transform()
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


def test_own_transform_stands_in_for_the_augmentation():
    data = image_set()
    turned, kept = loaders(data, on="auto", transform=own(("HorizontalFlip", {"p": 1})))

    def labelled(images, labels):  # each image is another
        return {image.tobytes(): int(y) for image, y in zip(images, labels)}

    for loader, images in ((turned, data.images[:, :, ::-1]), (kept, data.images)):
        found, labels = epoch(loader)
        found = pixels(found).round().astype(np.uint8)
        # And nothing else is done.
        assert labelled(found, labels) == labelled(images, data.labels)


def test_own_transform_is_tried_on_a_copy():
    def darken(image, **_):
        image //= 2
        return image

    data = image_set()
    before = data.fingerprint()
    loaders(data, on="cpu", transform=own(("Lambda", {"image": darken, "p": 1})))
    assert data.fingerprint() == before


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked there alone")
def test_workers_take_a_transform_that_cannot_be_pickled(monkeypatch):
    import albumentations as A

    monkeypatch.setattr(
        multiprocessing.context._default_context,
        "_actual_context",
        multiprocessing.get_context("forkserver"),
    )

    def invert(image, **_):  # as one defined in a notebook's cell
        return 255 - image

    inverse = A.Compose([A.Lambda(image=invert, name="inverse", p=1)])
    data = position_set(64)
    made, plain = (
        loaders(data, on="cpu", workers=1, transform=t).train
        for t in (inverse, A.Compose([]))
    )
    one, other = (np.rint(pixels(epoch(loader)[0])) for loader in (made, plain))
    assert np.array_equal(one, 255 - other)


def test_own_transform_draws_anew_for_each_batch_whoever_makes_it():
    tilt = own(("Rotate", {"limit": 20, "p": 1}))
    alone, two = (
        loaders(position_set(64), on="cpu", workers=n, transform=tilt).train
        for n in (0, 2)
    )
    first = epoch(alone)[0]
    assert torch.equal(epoch(two)[0], first)
    assert len({batch.numpy().tobytes() for batch in first.split(16)}) == 4
    assert not torch.equal(epoch(alone)[0], first)


def test_own_transform_is_for_small_images_too_and_watched_at_each():
    data = image_set(side=8)
    train, _ = loaders(data, on="cpu", transform=own(("VerticalFlip", {"p": 1})))
    assert epoch(train)[0].shape == (40, 3, 8, 8)
    rarely = own(("RandomCrop", {"height": 4, "width": 4, "p": 0.2}))
    with pytest.raises(ValueError, match=r"makes uint8 \(4, 4, 3\) .* crop or resize"):
        epoch(loaders(data, on="cpu", transform=rarely).train)


def test_own_transform_that_returns_nothing_is_refused():
    import albumentations as A

    def forgets(image, **options):
        image + 1

    transform = A.Compose([A.Lambda(image=forgets)])
    with pytest.raises(TypeError, match="makes a NoneType of an image; return the im"):
        loaders(image_set(), on="cpu", transform=transform)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([("Normalize", {})], r"makes float32 \(32, 32, 3\) of an image"),
        ([("RandomCrop", {"height": 8, "width": 8})], r"makes uint8 \(8, 8, 3\)"),
    ],
)
def test_own_transform_that_makes_something_else_is_refused(steps, said):
    data = image_set()
    with pytest.raises(ValueError, match=said):
        loaders(data, on="cpu", transform=own(*steps))
    with pytest.raises(ValueError, match='leave out augment_on="device"'):
        loaders(data, on="device", transform=own(*steps))
    with pytest.raises(TypeError, match="is a function that isn't Albumentations'"):
        loaders(data, on="auto", transform=lambda image: image)


def test_mean_that_numpy_computed_makes_the_same_batches():
    data = image_set()
    mean = tuple(data.images.mean((0, 1, 2)) / 255)
    made = [
        loaders(data, on="device", mean=some_mean, std=(0.25,) * 3)
        for some_mean in (mean, tuple(map(float, mean)))
    ]
    one, other = (next(iter(pair.test))[0] for pair in made)
    assert torch.equal(one, other)


def test_without_torchvision_nothing_is_downloaded_and_an_image_folder_read(
    folder, tmp_path_factory, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ModuleNotFoundError, match="pip install torchvision"):
        dataset.load_cifar10(empty)
    assert not list(empty.iterdir())
    assert len(dataset.load_cifar10(folder)[0]) == 20


ARRAYS = some.arrays(
    st.sampled_from(["uint8", "int64", "float32", "bool", ">i8", "U2"]),
    some.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=3),
)


@pytest.mark.filterwarnings("ignore:no pixel of .* images is above 1")
@given(st.data(), st.integers(0, 5))
def test_any_arrays_are_a_set_or_one_sentence(data, classes):
    images = data.draw(
        some.arrays("uint8", st.tuples(*[st.integers(0, 3)] * 4)) | ARRAYS
    )
    value = st.integers(0, classes - 1) if classes else st.just(0)
    fitting = some.arrays(
        "int64", images.shape[:1], elements=st.just(-1) | value | value
    )
    labels = data.draw(fitting | ARRAYS)
    names = tuple(map(str, range(classes)))
    fits = (
        images.ndim == 4
        and images.dtype == "uint8"
        and labels.dtype.kind in "iu"
        and labels.shape == images.shape[:1]
        and all(0 <= label < classes for label in labels)
    )
    try:
        made = dataset.ImageSet(images, labels, names, "noise")
    except ValueError as error:
        assert not fits
        assert "\n" not in str(error)
        assert {"images", "labels", "label"} & set(str(error).split())
    else:
        assert fits
        assert len(made) == len(images)


@st.composite
def numbered_sets(draw):
    """Sets whose images tell their index and their label."""
    labels = draw(st.lists(st.integers(0, 5), min_size=2, max_size=60))
    images = np.array([[[pair]] for pair in enumerate(labels)], dtype=np.uint8)
    return dataset.ImageSet(images, np.array(labels), tuple("abcdef"), "noise")


def indices(part):
    assert part.images[:, 0, 0, 1].tolist() == part.labels.tolist()
    return part.images[:, 0, 0, 0].tolist()


def assert_in_proportion(part, whole):
    """Each class has its share, but for rounding; equal ones differ by one at most."""
    have, all_ = (np.bincount(s.labels, minlength=6) for s in (part, whole))
    assert (abs(have - all_ * len(part) / len(whole)) <= 4).all()
    for size in set(all_):
        assert np.ptp(have[all_ == size]) <= 1


def test_channel_of_one_value_deviates_by_nothing_and_is_refused():
    images = np.full((7, 9, 9, 1), 127, np.uint8)  # whose mean is rounded
    data = dataset.ImageSet(images, np.zeros(7, np.int64), ("one",), "blank")
    mean, std = data.mean_std()
    assert std == (0,)
    with pytest.raises(ValueError, match="leave out a channel that is the same"):
        dataset.make_loaders(data, data, batch_size=2, device="cpu", mean=mean, std=std)


def test_classes_are_names_and_each_has_its_own():
    images, labels = np.zeros((2, 8, 8, 1), np.uint8), np.arange(2)
    for classes in (np.array(["cat", "dog"]), ["cat", "dog"], ("cat", "dog")):
        made = dataset.ImageSet(images, labels, classes, "two")
        assert made.classes == ("cat", "dog")
    assert dataset.ImageSet(images, labels, range(2), "two").classes == ("0", "1")
    for classes in ("catdog", {"cat", "dog"}, 2):
        with pytest.raises(TypeError, match="classes must be a tuple of names"):
            dataset.ImageSet(images, labels, classes, "two")
    with pytest.raises(
        ValueError, match="must have different names, not .'cat', 'cat'"
    ):
        dataset.ImageSet(images, labels, ("cat", "cat"), "two")


def test_rare_class_is_not_held_out_whole():
    labels = np.array([0] * 50 + [1] * 950)
    images = np.zeros((1000, 1, 1, 1), np.uint8)
    data = dataset.ImageSet(images, labels, ("cat", "dog"), "rare")
    rest, held = data.split(200)
    assert np.bincount(rest.labels).tolist() == [40, 760]
    assert np.bincount(held.labels).tolist() == [10, 190]


@pytest.mark.filterwarnings("ignore:no pixel of .* images is above 1")
@given(numbered_sets(), st.data())
def test_subset_and_split_lose_nothing_and_are_even(data, more):
    size = more.draw(st.integers(1, len(data)))
    small = indices(data.subset(size))
    assert len(small) == size
    assert small == sorted(set(small))
    assert_in_proportion(data.subset(size), data)
    for label in range(6):  # the first ones of each class are taken
        every, taken = (
            np.array(indices(s))[s.labels == label] for s in (data, data.subset(size))
        )
        assert taken.tolist() == every[: len(taken)].tolist()
    rest, held = data.split(more.draw(st.integers(1, len(data) - 1)))
    assert sorted(indices(rest) + indices(held)) == list(range(len(data)))
    assert indices(rest) == sorted(indices(rest))
    assert indices(held) == sorted(indices(held))
    assert_in_proportion(held, data)
    for label in range(6):  # the last ones of each class are held out
        kept, out = (np.array(indices(s))[s.labels == label] for s in (rest, held))
        assert not out.size or (kept < out.min()).all()
    chosen = more.draw(st.lists(st.integers(0, len(data) - 1), max_size=20))
    assert indices(data.take(np.array(chosen, dtype=np.int64))) == chosen


def test_synthetic_images_repeat_by_seed_and_by_seed_alone():
    train, test = dataset.synthetic_cifar10(train=60, test=30, seed=1)
    again = dataset.synthetic_cifar10(train=60, test=30, seed=1)
    other, _ = dataset.synthetic_cifar10(train=60, test=30, seed=2)
    assert train.fingerprint() == again[0].fingerprint() != other.fingerprint()
    # The size of one set doesn't alter the other.
    assert (
        dataset.synthetic_cifar10(train=10, test=30, seed=1)[1].fingerprint()
        == test.fingerprint()
    )
    assert train.images.shape == (60, 32, 32, 3)
    assert set(Counter(train.labels.tolist()).values()) == {6}
    assert "synthetic" in train.source


def test_images_are_drawn_where_cifar10_cannot_be_had_and_the_reason_is_told(
    folder, tmp_path_factory, monkeypatch
):
    sizes = {"train_images": 10, "test_images": 5}
    train, test, reason = dataset.load_or_draw(folder, **sizes)
    assert (len(train), len(test), reason) == (10, 5, None)
    assert train.source == "CIFAR-10, PNG copy"
    for asked in (None, "synthetic"):
        train, test, reason = dataset.load_or_draw(asked, **sizes)
        assert (len(train), len(test), reason) == (10, 5, "asked for")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("helpers.download.ARCHIVE_URLS", ("http://127.0.0.1:9/c",))
    empty = tmp_path_factory.mktemp("empty")
    train, test, reason = dataset.load_or_draw(empty, **sizes)
    assert (len(train), len(test)) == (10, 5)
    assert "127.0.0.1" in reason
    assert "synthetic" in train.source
    # A folder with faults is somebody's dataset: it is not replaced by drawings.
    shutil.rmtree(folder / "test" / "ship")
    with pytest.raises(ValueError, match="is missing or empty"):
        dataset.load_or_draw(folder, **sizes)


def test_loaders_and_transform_are_by_default_the_recipes():
    plan = train_test.Recipe()
    wanted = {"batch_size": plan.batch_size, **plan.augmentation}
    for make in (dataset.make_loaders, dataset.train_transform):
        defaults = inspect.signature(make).parameters
        shared = wanted.keys() & defaults.keys()
        assert shared >= plan.augmentation.keys()
        assert {name: defaults[name].default for name in shared} == {
            name: wanted[name] for name in shared
        }


def test_as_many_images_as_cifar10_has_are_drawn_where_no_number_is_given(monkeypatch):
    def blank(labels, rng):  # which takes no time
        return np.zeros((len(labels), 32, 32, 3), np.uint8)

    monkeypatch.setattr("helpers.synthetic.draw", blank)
    every = {"train_images": None, "test_images": None}
    train, test, _ = dataset.load_or_draw(None, **every)
    assert (len(train), len(test)) == (50_000, 10_000)
    train, held_out = dataset.images_of("synthetic", **every, holdout=5_000)
    assert (len(train), len(held_out)) == (45_000, 5_000)


# --- augmentation: what both ways of running it promise --------------------------------


def loaders(data=None, *, on="device", workers=0, **options):
    data = data or image_set()
    return dataset.make_loaders(
        data,
        data,
        device="cpu",
        augment_on=on,
        num_workers=workers,
        **{"batch_size": 16, "seed": 0, **options},
    )


def pixels(images):
    """Normalized (N, 3, H, W) back to the scale 0-255, (N, H, W, 3)."""
    std = 255 * torch.tensor(dataset.CIFAR10_STD)
    return (images.permute(0, 2, 3, 1) * std + torch.tensor(MEAN_COLOUR)).numpy()


def epoch(loader):
    batches = list(loader)
    return torch.cat([i for i, _ in batches]), torch.cat([y for _, y in batches])


BOTH = pytest.mark.parametrize("on", ["cpu", "device"])


def position_set(count=2000):
    """Images whose red tells the row and whose green tells the column."""
    y, x = np.mgrid[:32, :32]
    image = np.stack([8 * y, 8 * x, np.zeros_like(x)], axis=-1).astype(np.uint8)
    labels = np.zeros(count, dtype=np.int64)
    return dataset.ImageSet(np.stack([image] * count), labels, ("one",), "positions")


def test_transforms_normalize_and_cut_one_hole_by_seed():
    white = np.full((32, 32, 3), 255, np.uint8)
    plain = dataset.eval_transform()(image=white)["image"]
    mean, std = np.array(dataset.CIFAR10_MEAN), np.array(dataset.CIFAR10_STD)
    assert np.allclose(plain[:, 0, 0], (1 - mean) / std)
    one, again, other = (
        dataset.train_transform(seed=seed)(image=white)["image"] for seed in (1, 1, 2)
    )
    hole = (one != plain).any(0)
    assert hole.sum() == 64
    assert hole.any(0).sum() == hole.any(1).sum() == 8
    assert one[:, hole].abs().max() < 0.01  # the mean colour
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@BOTH
def test_oblong_images_are_augmented_within_their_own_sides(on):
    y, x = np.mgrid[:8, :12]
    image = np.stack([8 * y, 8 * x, np.zeros_like(x)], axis=-1).astype(np.uint8)
    data = dataset.ImageSet(
        np.stack([image] * 200), np.zeros(200, np.int64), ("one",), "oblong"
    )
    plain = {"batch_size": 200, "mean": (0,) * 3, "std": (1,) * 3, "flip": 1}
    ((seen, _),) = loaders(data, on=on, padding=2, cutout=0, **plain).train
    # Column 2 shows, of flipped images, column 9 moved by up to 2.
    assert set((seen[:, 1, 0, 2] * 255 / 8).round().tolist()) == set(range(7, 12))
    white = replace(data, images=np.full_like(data.images, 255))
    ((seen, _),) = loaders(white, on=on, padding=0, cutout=4, **plain).train
    hole = (seen == 0).all(1).int()
    assert set(hole.amax(2).argmax(1).tolist()) == set(range(5))
    assert set(hole.amax(1).argmax(1).tolist()) == set(range(9))


@BOTH
def test_crop_moves_by_up_to_4_pixels_uniformly_and_reflects_the_rest(on):
    images, _ = epoch(loaders(position_set(), on=on, flip=0, cutout=0).train)
    rows = (
        (pixels(images)[:, :, 0, 0] / 8).round().astype(int)
    )  # source row of each row
    columns = (pixels(images)[:, 0, :, 1] / 8).round().astype(int)
    padded = np.pad(np.arange(32), 4, mode="reflect")
    for lines in (rows, columns):
        # Row 16 is inside whatever the crop, so it tells the move.
        moves = lines[:, 16] - 16
        counts = Counter(moves.tolist())
        assert set(counts) == set(range(-4, 5))
        # Uniform: chi-squared with 8 degrees of freedom stays below its 99.9% point.
        expected = len(moves) / 9
        assert sum((c - expected) ** 2 / expected for c in counts.values()) < 26.1
        for line, move in zip(lines, moves, strict=True):
            assert (line == padded[4 + move : 36 + move]).all()
    assert abs(np.corrcoef(rows[:, 16], columns[:, 16])[0, 1]) < 0.1


@BOTH
def test_half_of_the_images_are_flipped_and_nothing_else_happens_to_them(on):
    data = position_set()
    images, _ = epoch(loaders(data, on=on, padding=0, cutout=0).train)
    seen = pixels(images).round().astype(np.uint8)
    flipped = (seen == data.images[0][:, ::-1]).all((1, 2, 3))
    kept = (seen == data.images[0]).all((1, 2, 3))
    assert (flipped ^ kept).all()
    assert abs(flipped.mean() - 0.5) < 0.04  # 3.5 standard deviations of 2,000 draws


@BOTH
def test_hole_is_one_square_of_the_mean_colour_wholly_inside(on):
    white = np.full((2000, 32, 32, 3), 255, dtype=np.uint8)
    data = dataset.ImageSet(white, np.zeros(2000, dtype=np.int64), ("one",), "white")
    seen = pixels(epoch(loaders(data, on=on, padding=0).train)[0])
    holes = (seen < 250).all(-1)
    assert (holes.sum((1, 2)) == 64).all()
    tops, lefts = holes.any(2).argmax(1), holes.any(1).argmax(1)
    for hole, top, left in zip(holes, tops, lefts, strict=True):
        assert hole[top : top + 8, left : left + 8].all()
    assert (
        abs(seen[holes] - MEAN_COLOUR).max() <= 0.51
    )  # the nearest grey level at worst
    assert set(tops) == set(lefts) == set(range(25))


@BOTH
def test_evaluation_changes_nothing_but_scale_and_keeps_the_order(on):
    data = image_set()
    images, labels = epoch(loaders(data, on=on).test)
    assert np.allclose(pixels(images), data.images, atol=1e-3)
    assert labels.tolist() == data.labels.tolist()
    scaled = (data.images / 255 - dataset.CIFAR10_MEAN) / dataset.CIFAR10_STD
    assert np.allclose(images.permute(0, 2, 3, 1), scaled, atol=1e-5)


@pytest.mark.parametrize(("on", "workers"), [("cpu", 0), ("cpu", 2), ("device", 0)])
def test_epochs_differ_and_repeat_by_seed_and_number(on, workers):
    loader = loaders(on=on, workers=workers).train
    first, second = epoch(loader), epoch(loader)
    assert sorted(first[1].tolist()) == sorted(second[1].tolist())
    assert not torch.equal(first[0], second[0])
    loader.set_epoch(1)
    assert torch.equal(epoch(loader)[0], second[0])
    assert torch.equal(epoch(loaders(on=on, workers=workers).train)[0], first[0])
    other = loaders(on=on, workers=workers, seed=1).train
    assert not torch.equal(epoch(other)[0], first[0])


@BOTH
def test_each_epoch_has_an_order_of_its_own(on):
    data = replace(
        image_set(), labels=np.arange(40), classes=tuple(map(str, range(40)))
    )
    train = loaders(data, on=on, padding=0, flip=0, cutout=0).train
    (images, labels), (_, others) = epoch(train), epoch(train)
    assert np.allclose(pixels(images), data.images[labels], atol=1e-3)
    one, other = labels.tolist(), others.tolist()
    assert sorted(one) == sorted(other) == list(range(40))
    assert one != other and list(range(40)) not in (one, other)


@BOTH
def test_each_epoch_is_augmented_anew(on):
    train = loaders(position_set(64), on=on).train  # alike, so that no order shows
    assert not torch.equal(epoch(train)[0], epoch(train)[0])


def test_workers_end_with_their_loader():
    before = {*multiprocessing.active_children()}
    loader = loaders(on="cpu", workers=1).train
    next(iter(loader))
    assert {*multiprocessing.active_children()} - before
    del loader  # and not when the garbage collector comes by
    assert not {*multiprocessing.active_children()} - before


def test_pass_within_a_pass_is_refused_where_workers_serve_both():
    alone, served = (loaders(on="cpu", workers=workers).train for workers in (0, 1))
    assert len(list(zip(alone, alone, strict=True))) == len(alone)
    with pytest.raises(RuntimeError, match="one at a time; end one before the next"):
        list(zip(served, served, strict=True))
    next(iter(served))
    assert len(list(served)) == len(served)  # one that is abandoned isn't in the way
    for number, _ in enumerate(served, start=1):
        if number == len(served):
            assert len(list(served)) == len(served)  # nor one that has all its batches


def test_no_two_batches_draw_the_same():
    # All images alike and all in one order: what differs comes from augmentation.
    data = position_set(64)
    for on, workers in (("cpu", 2), ("device", 0)):
        images, _ = epoch(loaders(data, on=on, workers=workers).train)
        drawn = {batch.numpy().tobytes() for batch in images.split(16)}
        assert len(drawn) == 4
        assert len({image.numpy().tobytes() for image in images}) > 60


def test_greyscale_of_another_size_goes_through_both_ways():
    data = image_set(20, side=8, channels=1)
    for on in ("cpu", "device"):
        options = {"padding": 1, "cutout": 2, "mean": (0.5,), "std": (0.5,)}
        images, _ = epoch(loaders(data, on=on, **options).train)
        assert images.shape == (20, 1, 8, 8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 41}, "batch_size must be 1 to 40"),
        ({"batch_size": 0}, "batch_size must be 1 to 40"),
        ({"workers": 0.5, "on": "cpu"}, "num_workers must be a whole number, not 0.5"),
        ({"workers": 0.5}, "num_workers must be a whole number, not 0.5"),
        ({"padding": 32}, "padding must be 0 to 31 pixels, not 32"),
        ({"padding": -1}, "padding must be 0 to 31 pixels, not -1"),
        ({"flip": 1.5}, "flip must be a probability from 0 to 1, not 1.5"),
        ({"flip": "0.5"}, "flip must be a probability from 0 to 1, not '0.5'"),
        ({"cutout": 32}, "cutout must be 0 to 31 pixels, not 32"),
        ({"on": "gpu"}, "augment_on must be auto, cpu or device, not 'gpu'"),
        (
            {"mean": (0.5,), "std": (0.5,)},
            "a value for each of 3 channels; train.mean_std",
        ),
        ({"mean": (0.5,)}, "must have a value each for every channel"),
        ({"mean": 0.5, "std": 0.2}, "must have a value each for every channel"),
        ({"mean": (125, 123, 114)}, "divide by 255 what is of pixels up to 255"),
        ({"std": (0.2, 0, 0.2)}, "std more than 0"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"batch_size": 4.0}, "batch_size must be a whole number, not 4.0"),
        ({"padding": 2.5}, "padding must be a whole number, not 2.5"),
    ],
)
def test_bad_numbers_are_named_with_what_is_allowed(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        loaders(**options)


def test_transforms_refuse_images_of_another_shape_and_impossible_colours():
    with pytest.raises(ValueError, match="seed must be 0 or more, not -1"):
        dataset.train_transform(seed=-1)
    other, grey = np.zeros((28, 28, 3), np.uint8), np.zeros((32, 32, 1), np.uint8)
    for transform, image in (
        (dataset.train_transform(), other),
        (dataset.train_transform(), grey),
        (dataset.eval_transform(), grey),
        (dataset.eval_transform(mean=(0.5,), std=(0.5,)), other),
    ):
        with pytest.raises(ValueError, match=r"the image is \(.* transform is for \("):
            transform(image=image)
    turned = np.zeros((3, 32, 32), np.uint8)
    for transform in (dataset.train_transform(), dataset.eval_transform()):
        with pytest.raises(ValueError, match=r"image.transpose\(1, 2, 0\) turns it"):
            transform(image=turned)
    for size in ((32, 32, 3), 32):
        with pytest.raises(ValueError, match=r"size must be \(H, W\), as of images"):
            dataset.train_transform(size=size)
    for kind in (dataset.train_transform, dataset.eval_transform):
        assert "Normalize" in repr(kind())  # as a cell's last line shows it
        with pytest.raises(ValueError, match="std more than 0"):
            kind(std=(0, 0, 0))


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"train": -1}, "train and test must be 0 or more, not -1 and 1"),
        ({"train": 1.5}, "train must be a whole number, not 1.5"),
        ({"train": 1, "seed": -1}, "seed must be 0 or more, not -1"),
    ],
)
def test_numbers_that_make_no_synthetic_images_are_refused(numbers, said):
    with pytest.raises(ValueError, match=said):
        dataset.synthetic_cifar10(test=1, **numbers)


def test_parts_of_a_set_are_whole_numbers_that_it_has():
    images = image_set(40)
    assert images.subset(None) is images
    with pytest.raises(ValueError, match=r"41 images were asked for .* holds 40"):
        images.subset(41)
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"{size} images were asked for"):
            images.subset(size)
        with pytest.raises(ValueError, match="holdout must be 1 to 39"):
            images.split(size)
    with pytest.raises(ValueError, match="holdout must be 1 to 39"):
        images.split(40)
    with pytest.raises(ValueError, match=r"holdout must be a whole number, not 0\.2"):
        images.split(0.2)
    with pytest.raises(ValueError, match=r"size must be a whole number, not 0\.2"):
        images.subset(0.2)
