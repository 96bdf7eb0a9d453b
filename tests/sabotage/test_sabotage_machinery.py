"""What counts as noticing, which cells are run, and a small notebook that is sabotaged."""

from pathlib import Path

import nbformat
import pytest
import running
import slices
import torch
from outcomes import kind_of

from dqlab.reference.ptq4dm import time_steps

CELLS = [
    "import torch\nfrom a.b import c as d",
    "x, y = torch.ones(2)",
    "def f(k):\n    z = k\n    return z + x",
    "x = 5",
    "for y in range(3):\n    print(y)",
    "print(f(1), [w for w in range(3)], {v: v for v in d})",
    "x += 1",
]


@pytest.mark.parametrize(
    ("cell", "used", "defined"),
    [
        (0, set(), {"torch", "d"}),
        (1, {"torch"}, {"x", "y"}),
        (2, {"x"}, {"f", "z"}),
        (4, {"range", "print"}, {"y"}),
        (5, {"print", "f", "range", "d"}, {"w", "v"}),
        (6, {"x"}, {"x"}),
    ],
)
def test_what_a_cell_uses_and_defines(cell: int, used: set, defined: set) -> None:
    assert slices.names(CELLS[cell]) == (used, defined)


@pytest.mark.parametrize(
    ("targets", "always", "found"),
    [
        ([1], [], [0, 1]),
        ([5], [], [0, 1, 2, 5]),
        ([4], [0], [0, 4]),
        ([6], [], [3, 6]),
        ([6, 1], [], [0, 1, 3, 6]),
    ],
)
def test_a_slice_has_the_last_definition_of_every_name(targets, always, found) -> None:
    assert slices.needed(CELLS, targets, always) == found


class FakeCellError(Exception):
    def __init__(self, message: str, inner_traceback: str = ""):
        super().__init__(message)
        self.inner_traceback = inner_traceback


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AssertionError("1 == 2"), "assertion"),
        (pytest.fail.Exception("DID NOT RAISE"), "assertion"),
        (FakeCellError("Cell outputs differ", "<<< a"), "comparison"),
        (FakeCellError("caused", "a\n\x1b[31mMismatchError\x1b[39m: stored 1"), "redo"),
        (FakeCellError("caused", "in MismatchError\n\x1b[31mKeyError\x1b[39m: 3"), "FakeCell"),
        (RuntimeError("shapes"), "RuntimeError: shapes"),
    ],
)
def test_a_crash_is_no_check(error: Exception, kind: str) -> None:
    assert kind_of(error).startswith(kind)


def cell(source: str, *tags: str, text: str = "") -> nbformat.NotebookNode:
    outputs = [nbformat.v4.new_output("stream", text=text)] if text else []
    return nbformat.v4.new_code_cell(
        source, outputs=outputs, execution_count=1, metadata={"tags": list(tags)}
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slug", "kinds"),
    [
        ("", ["passed"] * 4),
        ("ptq4dm", ["comparison", "redo", "passed", "NbCellError: IndexError"]),
    ],
)
def test_a_small_notebook(slug: str, kinds: list[str], tmp_path: Path) -> None:
    """The second cell would fail, but nobody needs it."""
    mean = float(time_steps(5_000, 20, generator=torch.Generator().manual_seed(0)).double().mean())
    notebook = nbformat.v4.new_notebook(
        cells=[
            cell("import torch\nfrom dqlab.errors import MismatchError", "setup"),
            cell("raise RuntimeError('not needed')"),
            cell("from dqlab.reference.ptq4dm import time_steps as draw\n"
                 "t = draw(5_000, 20, generator=torch.Generator().manual_seed(0))"),
            cell("mean = float(t.double().mean())\nprint(f'{mean:.3g}')", "method-ptq4dm",
                 text=f"{mean:.3g}\n"),
            cell(f"if abs(mean - {mean}) > 0.1:\n    raise MismatchError('no')", "method-ptq4dm"),
            cell("print(len(t))", "method-ptq4dm", text="5000\n"),
            cell(f"_ = [0][int(abs(mean - {mean}) > 0.1)]", "method-ptq4dm"),
        ]
    )  # fmt: skip
    found = running.cells(tmp_path, notebook, "method-ptq4dm", slug)
    assert sorted(found) == [0, 2, 3, 4, 5, 6]
    for number, kind in enumerate(kinds, start=3):
        assert found[number].startswith(kind)
