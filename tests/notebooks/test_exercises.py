"""Every check passes the solution, refuses the planted mistakes, and knows an empty answer.

Exercises are run in a fresh namespace that holds the notebook's setup cells alone, so none can
depend on what a reader did before.
"""

import contextlib
import io
from functools import cache

import nbsource
import pytest
from build import HERE, Folders
from nbformat import NotebookNode
from nbsource import Exercise

MISTAKES = 2


@cache
def source(folders: Folders, name: str) -> NotebookNode:
    return nbsource.read(folders.source(name))


def judge(notebook: NotebookNode, exercise: Exercise, answer: str) -> tuple[bool, str]:
    """The verdict on an answer, and what the check printed."""
    names: dict[str, object] = {"__name__": "__exercise__"}
    exec(nbsource.setup_code(notebook), names)
    exec(answer, names)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        verdict = nbsource.verdict(exercise.check, names)
    return verdict, printed.getvalue()


def flaws(notebook: NotebookNode, exercise: Exercise) -> list[str]:
    """What is wrong with an exercise; nothing if its check tells right from wrong."""
    found = []
    if len(exercise.mistakes) < MISTAKES:
        found.append(f"only {len(exercise.mistakes)} planted mistakes")
    if not judge(notebook, exercise, exercise.solution)[0]:
        found.append("refuses its own solution")
    found += [
        f"accepts the mistake that {why}"
        for why, code in exercise.mistakes.items()
        if judge(notebook, exercise, code)[0]
    ]
    passed, printed = judge(notebook, exercise, exercise.stub)
    if passed or "not attempted" not in printed.lower():
        found.append("does not say 'not attempted' to the stub")
    return found


COMMITTED = [
    (name, exercise)
    for name in HERE.names()
    for exercise in nbsource.exercises(source(HERE, name))
]


@pytest.mark.parametrize(("name", "exercise"), COMMITTED)
def test_the_check_tells_right_from_wrong(name: str, exercise: str) -> None:
    notebook = source(HERE, name)
    assert flaws(notebook, nbsource.exercises(notebook)[exercise]) == []


@pytest.fixture
def tiny_notebook(tiny: Folders) -> NotebookNode:
    return nbsource.read(tiny.source("1-tiny"))


def test_a_sound_exercise_has_no_flaws(tiny_notebook: NotebookNode) -> None:
    assert flaws(tiny_notebook, nbsource.exercises(tiny_notebook)["levels"]) == []


@pytest.mark.parametrize(
    ("cell", "old", "new", "flaw"),
    [
        (1, "== 16", "== 15", "refuses its own solution"),
        (1, "== 16", "in (8, 16)", "accepts the mistake that adds"),
        (1, "not attempted", "wrong", "does not say"),
        (1, "return False", "return True", "does not say"),
        (6, "tags", "tags", "only 1 planted"),
    ],
)
def test_each_flaw_is_found(
    tiny_notebook: NotebookNode, cell: int, old: str, new: str, flaw: str
) -> None:
    if flaw.startswith("only"):
        del tiny_notebook.cells[cell]
    else:
        tiny_notebook.cells[cell].source = tiny_notebook.cells[cell].source.replace(old, new)
    found = flaws(tiny_notebook, nbsource.exercises(tiny_notebook)["levels"])
    assert any(one.startswith(flaw) for one in found), found


def test_exercises_cannot_lean_on_other_cells(tiny_notebook: NotebookNode) -> None:
    exercise = nbsource.exercises(tiny_notebook)["levels"]
    with pytest.raises(NameError, match="not_for_exercises"):
        judge(tiny_notebook, exercise, exercise.solution + "\nnot_for_exercises")


def test_a_check_yields_a_bool() -> None:
    assert nbsource.verdict("a = 1\na == 1", {}) is True
    for code in ("None", "x = 1", "def f(): pass"):
        with pytest.raises(nbsource.SourceError):
            nbsource.verdict(code, {})
