"""Progress bars, for whoever watches."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def somebody_watches() -> bool:
    """Whether a person may be looking: at a terminal, or at a notebook's front end."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if kernel := getattr(shell, "kernel", None):
        # A front end can ask the person for input; a batch execution says it can't.
        return getattr(kernel, "_allow_stdin", True)
    # What stands in for a terminal, to write a log say, may have none of its methods.
    return getattr(sys.stdout, "isatty", bool)()


def step_bar(steps: Iterable, name: str, shown: bool = True) -> tqdm:
    """The same steps, with a bar of that name while somebody watches."""
    return tqdm(
        steps,
        name,
        unit="step",
        leave=False,
        file=sys.stdout,
        disable=not (shown and somebody_watches()),
    )
