"""Execute S10.ipynb and show in the terminal what it is doing; `make run` runs this.

The executed notebook and an HTML page of it are left in build/, also when a cell fails;
S10.ipynb itself is not touched.
"""

import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from traitlets.config import Config

PROJECT = Path(__file__).resolve().parent.parent
BUILD = PROJECT / "build"


class Narrator(NotebookClient):
    """Prints each part's heading as it is reached, and what its cells print as they do."""

    last_line = ""

    async def async_execute_cell(self, cell, cell_index, **options):
        if cell.cell_type == "markdown":
            for heading in re.findall(r"^#+ (.*)$", cell.source, re.MULTILINE):
                elapsed = time.perf_counter() - self.start
                print(
                    f"\n[{elapsed // 60:3.0f}:{elapsed % 60:02.0f}] {heading}",
                    flush=True,
                )
        return await super().async_execute_cell(cell, cell_index, **options)

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            text = msg["content"]["text"]
            print("   ", text.rstrip("\n").replace("\n", "\n    "), flush=True)
            self.last_line = text.strip().splitlines()[-1:] or self.last_line
        return super().process_message(msg, cell, cell_index)


def main() -> int:
    notebook = nbformat.read(PROJECT / "S10.ipynb", as_version=4)
    # Over TCP, where Windows leaves no choice, the kernel warns that anyone could listen.
    transport = "tcp" if os.name == "nt" else "ipc"
    client = Narrator(
        notebook,
        timeout=None,
        resources={"metadata": {"path": PROJECT}},
        config=Config(KernelManager={"transport": transport}),
    )
    client.start, failure = time.perf_counter(), None
    try:
        client.execute()
    except CellExecutionError as error:
        failure = error
    BUILD.mkdir(exist_ok=True)
    nbformat.write(notebook, BUILD / "S10.ipynb")
    page, _ = HTMLExporter().from_notebook_node(notebook)
    (BUILD / "S10.html").write_text(page, encoding="utf-8")
    where = f"{os.path.relpath(BUILD / 'S10.html')} and {os.path.relpath(BUILD / 'S10.ipynb')}"
    if failure:
        print(
            f"\n{failure.ename}: {failure.evalue}\nUp to there: {where}",
            file=sys.stderr,
        )
        return 1
    print(f"\n{client.last_line[0]}\nSee {where}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
