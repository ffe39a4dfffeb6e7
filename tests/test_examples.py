"""The committed examples are short, of one whole run, and say what their figures are about.

`make test-all` runs them.
"""

import json
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))


def test_there_are_three_examples():
    names = [path.stem for path in EXAMPLES]
    assert names == ["digits", "folder_gradcam", "hundred_classes"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_its_outputs_are_of_one_whole_run(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) <= 12
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    printed = "".join("".join(o.get("text", "")) for o in outputs)
    done = printed.splitlines()[-1]
    assert done.startswith("Done. Data: ") and "Profile: real" in done
    data = done.removeprefix("Done. Data: ").partition(".")[0]
    assert f"profile real | data {data}" in printed
    assert path.stat().st_size < 600_000


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_figure_of_an_example_is_there_and_has_a_label(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    figures = [c for c in cells if "utils.plot_" in "".join(c["source"])]
    code = [c for c in figures if c["cell_type"] == "code"]
    assert len(code) >= 4
    for cell in code:
        assert "data=DATA" in "".join(cell["source"]) or "{DATA}" in "".join(
            cell["source"]
        )
        assert any("image/png" in output.get("data", {}) for output in cell["outputs"])
