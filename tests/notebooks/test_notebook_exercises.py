"""Every check passes the solution, refuses the planted mistakes, and knows an empty answer.

Exercises are run in a fresh namespace that holds the notebook's setup cells alone, so none can
depend on what a reader did before.
"""

from functools import cache

import nbsource
import pytest
from nbbuild import HERE, Folders
from nbformat import NotebookNode
from nbsource import Exercise

MISTAKES = 2


@cache
def source(folders: Folders, name: str) -> NotebookNode:
    return nbsource.read(folders.source(name))


@cache
def prepared(code: str) -> dict[str, object]:
    """The names that a notebook's setup cells leave, made once because they may load a model."""
    names: dict[str, object] = {"__name__": "__main__"}
    exec(code, names)
    return names


def judge(notebook: NotebookNode, exercise: Exercise, answer: str) -> str:
    """What the check finds in an answer."""
    names = dict(prepared(nbsource.setup_code(notebook)))
    exec(answer, names)
    return nbsource.outcome(exercise.check, names)


def flaws(notebook: NotebookNode, exercise: Exercise) -> list[str]:
    """What is wrong with an exercise; nothing if its check tells right from wrong.

    A mistake must be found wrong by its values: one that raises proves nothing.
    """
    answers = [("solution", exercise.solution, "passed"), ("stub", exercise.stub, "not attempted")]
    answers += [(f"mistake: {why}", code, "wrong") for why, code in exercise.mistakes.items()]
    found = []
    if len(exercise.mistakes) < MISTAKES:
        found.append(f"{len(exercise.mistakes)} planted mistakes, at least {MISTAKES}")
    for name, code, expected in answers:
        outcome = judge(notebook, exercise, code)
        if outcome != expected:
            found.append(f"{name} counts as {outcome!r}, not as {expected!r}")
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
    ("old", "new", "flaw"),
    [
        ("== 16", "== 15", "solution counts as 'wrong'"),
        ("== 16", "in (8, 16)", "mistake: adds where it should multiply counts as 'passed'"),
        ("return 2 * bits", "return 2 * None", "multiply counts as 'raised'"),
        ("except NotImplementedError", "except KeyError", "stub counts as 'raised'"),
    ],
)
def test_each_flaw_is_found(tiny_notebook: NotebookNode, old: str, new: str, flaw: str) -> None:
    for cell in tiny_notebook.cells:
        cell.source = cell.source.replace(old, new)
    found = flaws(tiny_notebook, nbsource.exercises(tiny_notebook)["levels"])
    assert any(flaw in one for one in found), found


def test_one_mistake_is_too_few(tiny_notebook: NotebookNode) -> None:
    exercise = nbsource.exercises(tiny_notebook)["levels"]
    exercise.mistakes.popitem()
    assert flaws(tiny_notebook, exercise) == ["1 planted mistakes, at least 2"]


def test_exercises_cannot_lean_on_other_cells(tiny_notebook: NotebookNode) -> None:
    exercise = nbsource.exercises(tiny_notebook)["levels"]
    with pytest.raises(NameError, match="not_for_exercises"):
        judge(tiny_notebook, exercise, exercise.solution + "\nnot_for_exercises")


@pytest.mark.parametrize("code", ["None", "x = 1", "def f(): pass", "print(1)"])
def test_a_check_cell_calls_a_check(code: str) -> None:
    with pytest.raises(nbsource.SourceError, match="check"):
        nbsource.outcome(code, {})
