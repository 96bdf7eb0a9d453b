"""Run a test, or some cells of a notebook, in a process of their own, sabotaged or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import nbformat
import slices
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TIMEOUT_S = 600


def outcomes(folder: Path, arguments: Iterable[str], slug: str = "") -> dict[str, str]:
    """What pytest finds: node id -> kind of outcome. `folder` is for its files."""
    report = folder / "outcomes.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "outcomes", "--outcomes", str(report), "-q"]
    command += ["-p", "no:cacheprovider", *(["--sabotage", slug] if slug else []), *arguments]
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    env |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # importing them takes longer than the tests
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    if not found:
        raise RuntimeError(f"{' '.join(command)} ran no test:\n{done.stdout}{done.stderr}")
    return found


def tagged(notebook: NotebookNode, tag: str) -> list[int]:
    """Numbers of the code cells with a tag, code cells counted from 0."""
    return [i for i, cell in enumerate(_code(notebook)) if tag in cell.metadata.get("tags", [])]


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


PATCH = (
    "import sys\nsys.path.insert(0, {here!r})\nfrom patching import sabotage\nsabotage({slug!r})"
)


def cells(folder: Path, notebook: NotebookNode, tag: str, slug: str = "") -> dict[int, str]:
    """What nbval says of the cells with a tag and of those they need, by code cell number.

    Setup cells run always. With a slug, the method is sabotaged in the kernel before them.
    """
    code = _code(notebook)
    chosen = slices.needed(
        [c.source for c in code], tagged(notebook, tag), tagged(notebook, "setup")
    )
    first = nbformat.v4.new_code_cell(
        PATCH.format(here=str(HERE), slug=slug) if slug else "pass", execution_count=1
    )
    part = nbformat.v4.new_notebook(
        cells=[first, *(code[i] for i in chosen)], metadata=notebook.metadata
    )
    path = folder / "part.ipynb"
    nbformat.write(part, path)
    # The kernel is another process; the one that compares stays as it is.
    found = outcomes(folder, ["-p", "nbval", "--nbval", "--rootdir", str(folder), str(path)])
    kinds = {int(node.rsplit(" ", 1)[1]): kind for node, kind in found.items()}
    if kinds.pop(0) != "passed":
        raise RuntimeError(f"sabotage({slug!r}) failed in the kernel: {found}")
    return {number: kinds[i + 1] for i, number in enumerate(chosen)}
