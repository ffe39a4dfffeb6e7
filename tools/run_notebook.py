"""Execute S10.ipynb and show in the terminal what it is doing; `make run` runs this.

The executed notebook and an HTML page of it are left in build/, also when a cell fails;
S10.ipynb itself is not touched.
"""

import functools
import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ClearOutputPreprocessor
from traitlets.config import Config

PROJECT = Path(__file__).resolve().parent.parent
BUILD = PROJECT / "build"


class Narrator(NotebookClient):
    """Prints what the cells print, at once."""

    last_line = ""

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            text = msg["content"]["text"]
            print("   ", text.rstrip("\n").replace("\n", "\n    "), flush=True)
            if text.strip():
                self.last_line = text.strip().splitlines()[-1]
        return super().process_message(msg, cell, cell_index)


def print_heading(start: float, cell, cell_index: int) -> None:
    """Print a part's heading as it is reached; nbclient calls this for texts too."""
    if cell.cell_type == "markdown":
        for heading in re.findall(r"^#+ (.*)$", cell.source, re.MULTILINE):
            minutes, seconds = divmod(time.perf_counter() - start, 60)
            print(f"\n[{minutes:3.0f}:{seconds:02.0f}] {heading}", flush=True)


def failure_of(client: NotebookClient) -> str:
    """Execute the notebook; return what ended it early, or an empty text."""
    try:
        client.execute()
    except CellExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except RuntimeError as error:  # nbclient's, while it runs or before it answers
        return f"{error}: where memory ran out, close what else takes much of it"
    except KeyboardInterrupt:
        return "Interrupted"
    except (AssertionError, AttributeError) as error:  # nbclient's, often after Ctrl-C
        return f"Interrupted, or nbclient failed: {error!r}"
    return ""


def digest_of(notebook: nbformat.NotebookNode) -> str:
    """What tells whether outputs are of this code: the SHA-256 of all code cells.

    But the first, which fetches the project: whoever hands it out writes an address there.
    """
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\n".join(code[1:]).encode()).hexdigest()


def main() -> int:
    sys.stdout.reconfigure(errors="replace")  # not all of Windows' code pages have ×
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=BUILD):  # said before the experiment, not after
        pass
    notebook = nbformat.read(PROJECT / "S10.ipynb", as_version=4)
    # Cells that aren't reached would keep what they showed in another run.
    ClearOutputPreprocessor().preprocess(notebook, {})
    # Not in the project's folder, whose disk may be one that takes no sockets.
    with tempfile.TemporaryDirectory() as sockets:
        # Over TCP, where Windows leaves no choice, it warns that anyone could listen.
        kernel = {"transport": "ipc", "ip": os.path.join(sockets, "kernel")}
        client = Narrator(
            notebook,
            timeout=None,
            kernel_name="python3",  # whatever it was saved with
            record_timing=False,  # times of day would be most of each execution's diff
            resources={"metadata": {"path": PROJECT}},
            config=Config(KernelManager={} if os.name == "nt" else kernel),
            on_cell_start=functools.partial(print_heading, time.perf_counter()),
        )
        failure = failure_of(client)
    notebook.metadata.code_sha256 = digest_of(notebook)
    nbformat.write(notebook, BUILD / "S10.ipynb")
    page, _ = HTMLExporter().from_notebook_node(notebook)
    (BUILD / "S10.html").write_text(page, encoding="utf-8")
    where = f"{os.path.relpath(BUILD / 'S10.html')} and {os.path.relpath(BUILD / 'S10.ipynb')}"
    if failure:
        print(f"\n{failure}\nUp to there: {where}", file=sys.stderr)
        return 1
    print(f"\n{client.last_line}\nSee {where}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
