"""What other assignments import stays, or its change is meant and written down.

public_surface.txt has a line for each name in the modules' __all__: what one can pass, and
what a class holds. After a change that is meant, `python -m tests.test_public_surface`
writes it anew and says what CHANGELOG.md needs.
"""

import difflib
import hashlib
import importlib
import inspect
import re
import runpy
import tomllib

from tests.shared import PROJECT

STORED = PROJECT / "tests" / "public_surface.txt"
CHANGELOG = PROJECT / "CHANGELOG.md"
MODULES = ("models", "dataset", "train_test", "utils", "weights")


def parameters(function):
    """(a, *, b=1): without types, whose spelling changes from one Python to the next."""
    signature = inspect.signature(function)
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    # A function as a default has its address in its text.
    return re.sub(r"<function .*? at 0x\w+>", "...", str(inspect.Signature(plain)))


def describe(name, value):
    """One line for `value`, and one for each method and property of a class's own."""
    if not callable(value):
        # The values in PROFILES and MODELS may get better; their names stay.
        return [f"{name} = {sorted(value) if isinstance(value, dict) else value!r}"]
    if inspect.isclass(value) and issubclass(value, Exception):
        return [f"{name} is an {value.__base__.__name__}"]
    lines = [name + parameters(value)]
    for member, what in vars(value).items() if inspect.isclass(value) else ():
        if isinstance(what, property):
            lines.append(f"{name}.{member}")
        elif inspect.isroutine(what) and not member.startswith("_"):
            lines.append(f"{name}.{member}" + parameters(getattr(value, member)))
    return lines


def surface():
    lines = []
    for module in MODULES:
        imported = importlib.import_module(f"helpers.{module}")
        for name in sorted(imported.__all__):
            lines += describe(f"{module}.{name}", getattr(imported, name))
    return lines


def digest(lines):
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def entry(lines):
    """What CHANGELOG.md's newest section has to hold, so that no change goes unwritten."""
    return f"Public surface: `{digest(lines)}`"


def test_public_surface_is_the_stored_one():
    stored, found = STORED.read_text().splitlines(), surface()
    changes = list(
        difflib.unified_diff(stored, found, "stored", "found", "", "", 0, "")
    )
    assert not changes, (
        "the public surface has changed:\n  "
        + "\n  ".join(line for line in changes if not line.startswith("@@"))
        + "\nOther assignments import these names. If the change is meant, run "
        "`python -m tests.test_public_surface` and add a line to CHANGELOG.md."
    )


def test_changelog_tells_of_the_stored_surface():
    stored = STORED.read_text().splitlines()
    log = CHANGELOG.read_text(encoding="utf-8")
    newest = log.split("\n## ")[1]
    assert entry(stored) in newest, (
        "tests/public_surface.txt has changed and CHANGELOG.md doesn't say so: in its "
        "newest section, write what has changed for those who import it, and "
        f"{entry(stored)!r}"
    )
    names = {re.match(r"\w+\.(\w+)", line)[1] for line in stored}
    untold = sorted(name for name in names if f"`{name}`" not in log)
    assert not untold, f"CHANGELOG.md doesn't mention `{'`, `'.join(untold)}`"


def test_an_assignment_written_against_version_0_1_still_works():
    runpy.run_path(str(PROJECT / "tests" / "assignment_0_1.py"))


def test_package_and_notebook_ask_for_the_same_versions():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    packaged = {*project["dependencies"], *project["optional-dependencies"]["all"]}
    listed = (PROJECT / "requirements.txt").read_text().splitlines()
    # What the notebook needs besides is what executes it.
    others = {
        re.match(r"\w+", line)[0] for line in {*listed} - packaged if line[0] != "#"
    }
    assert packaged <= {*listed}
    assert others == {"nbval", "nbclient", "nbconvert", "nbformat", "ipykernel"}


if __name__ == "__main__":
    STORED.write_text("\n".join(surface()) + "\n")
    print(
        f"{STORED.relative_to(PROJECT)} is written. The newest section of CHANGELOG.md needs"
    )
    print("a line that says what has changed for those who import it, and")
    print(entry(surface()))
