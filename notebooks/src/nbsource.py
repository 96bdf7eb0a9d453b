"""What a notebook source may say, and the two notebooks that are made from it.

A source is ``notebooks/src/<name>.py`` in jupytext's py:percent form. Beside plain cells it knows:

* ``tags=["exercise"] exercise="<id>"``: defines the function a reader writes. What stands between
  ``### BEGIN SOLUTION`` and ``### END SOLUTION`` is missing from the student copy.
* ``tags=["mistake"] exercise="<id>" why="..."``: a wrong answer, in neither copy; a test shows
  that the check refuses it.
* ``tags=["check"] exercise="<id>"``: its last statement calls the check with the answer.
* ``tags=["setup"]``: what exercises and checks may rely on (imports, data), and nothing else.
* ``tags=["solution"]``: explains an answer; not in the student copy.
* ``{{run time}}`` in prose: replaced by the measured run time.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = "raise NotImplementedError()"
RUN_TIME = "{{run time}}"
METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}


class SourceError(ValueError):
    """A notebook source that breaks the rules above; says where and how to mend it."""


@dataclass
class Exercise:
    """One exercise: sources of the solution, the check and the planted mistakes (why -> code)."""

    solution: str = ""
    check: str = ""
    mistakes: dict[str, str] = field(default_factory=dict)

    @property
    def stub(self) -> str:
        """What the student finds."""
        return without_solution(self.solution)


def tags(cell: NotebookNode) -> set[str]:
    """The cell's tags."""
    return set(cell.metadata.get("tags", []))


def read(path: Path) -> NotebookNode:
    """Parse a source file; the notebook still holds mistakes and unresolved marks.

    Raises SourceError on unknown exercise ids, unbalanced marks, or a reason that is missing.
    """
    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        problem = _problem(cell)
        if problem:
            raise SourceError(f"{path.name}, cell {number}: {problem}")
    for name, exercise in exercises(notebook).items():
        if not (exercise.solution and exercise.check):
            raise SourceError(f"{path.name}: exercise {name!r} needs an exercise and a check cell")
    return notebook


def _problem(cell: NotebookNode) -> str:
    """Why this cell cannot be used, or nothing."""
    kinds = tags(cell) & {"exercise", "mistake", "check"}
    if kinds and "exercise" not in cell.metadata:
        return f'a cell tagged {", ".join(sorted(kinds))} needs exercise="<id>"'
    if len(kinds) > 1:
        return f"tags {', '.join(sorted(kinds))} exclude each other"
    if "mistake" in kinds and not cell.metadata.get("why"):
        return 'a planted mistake needs why="..."'
    if ("exercise" in kinds) != (BEGIN in cell.source):
        return f"{BEGIN!r} belongs in exercise cells, and in each of them"
    if cell.source.count(BEGIN) != cell.source.count(END):
        return f"{BEGIN!r} and {END!r} do not pair up"
    return ""


def exercises(notebook: NotebookNode) -> dict[str, Exercise]:
    """The exercises of a parsed source, by id, in reading order."""
    found: dict[str, Exercise] = {}
    for cell in notebook.cells:
        if "exercise" not in cell.metadata:
            continue
        exercise = found.setdefault(cell.metadata["exercise"], Exercise())
        if "mistake" in tags(cell):
            exercise.mistakes[cell.metadata["why"]] = cell.source
        elif "check" in tags(cell):
            exercise.check = cell.source
        else:
            exercise.solution = cell.source
    return found


def setup_code(notebook: NotebookNode) -> str:
    """Everything an exercise may rely on."""
    return "\n".join(cell.source for cell in notebook.cells if "setup" in tags(cell))


def outcome(code: str, names: dict[str, object]) -> str:
    """Run a check cell in ``names``; what the check finds: passed, wrong, raised, not attempted.

    The last statement calls a ``dqlab.show`` check with the answer, as in ``check(levels)``; here
    its ``run`` is called instead, which returns the verdict. SourceError for any other ending.
    """
    *body, last = ast.parse(code).body
    call = getattr(last, "value", None)
    if not isinstance(call, ast.Call):
        raise SourceError("a check cell ends with the call of a check, such as check(levels)")
    exec(compile(ast.Module(body, []), "<check>", "exec"), names)
    check, *answers = (
        eval(compile(ast.Expression(part), "<check>", "eval"), names)
        for part in (call.func, *call.args)
    )
    if not hasattr(check, "run"):
        raise SourceError(f"{ast.unparse(call.func)} is no check: it has no run()")
    return check.run(*answers).outcome


def without_solution(code: str) -> str:
    """Replace what stands between the solution marks by a stub."""
    pattern = rf"^([ \t]*){BEGIN}\n.*?^[ \t]*{END}"
    return re.sub(pattern, rf"\g<1>{STUB}", code, flags=re.M | re.S)


def solved(source: NotebookNode, run_time: str) -> NotebookNode:
    """The copy with solutions, not executed. ``run_time`` is a phrase such as "about 20 s"."""
    return _copy(source, {"mistake"}, lambda text: text, run_time)


def student(source: NotebookNode, run_time: str) -> NotebookNode:
    """The copy without solutions; it runs from top to bottom without an error."""
    return _copy(source, {"mistake", "solution"}, without_solution, run_time)


def _copy(
    source: NotebookNode, dropped: set[str], edit: Callable[[str], str], run_time: str
) -> NotebookNode:
    cells = [cell for cell in source.cells if not tags(cell) & dropped]
    copies = [_clean(cell, edit(cell.source).replace(RUN_TIME, run_time)) for cell in cells]
    for cell, name in zip(copies, _ids(cells), strict=True):
        cell.id = name
    return nbformat.v4.new_notebook(cells=copies, metadata=nbformat.from_dict(METADATA))


def _clean(cell: NotebookNode, text: str) -> NotebookNode:
    new = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
    metadata = {key: cell.metadata[key] for key in ("tags", "exercise") if key in cell.metadata}
    return new(text, metadata=metadata | _nbgrader(cell))


def _nbgrader(cell: NotebookNode) -> dict[str, object]:
    """Metadata that lets an instructor hand the solved copy to nbgrader as it is."""
    kind = tags(cell) & {"exercise", "check"}
    if not kind:
        return {}
    graded = kind == {"check"}
    entry = {"schema_version": 3, "grade": graded, "solution": not graded, "locked": graded}
    name = cell.metadata["exercise"] + ("-check" if graded else "")
    entry |= {"task": False, "grade_id": name} | ({"points": 1} if graded else {})
    return {"nbgrader": entry}


def _ids(cells: Iterable[NotebookNode]) -> list[str]:
    """Ids from content, so that an edit changes one id and a rebuild none."""
    seen: dict[str, int] = {}
    ids = []
    for cell in cells:
        name = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[name] = seen.get(name, 0) + 1
        ids.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return ids


def differences(expected: NotebookNode, found: NotebookNode) -> list[str]:
    """Where a notebook departs from what its source says; outputs and counts do not matter."""
    want, have = _skeleton(expected), _skeleton(found)
    problems = [
        f"cell {number}: {part} differs"
        for number, pair in enumerate(zip(want, have, strict=False))
        for part in want[number]
        if pair[0][part] != pair[1][part]
    ]
    if len(want) != len(have):
        problems.append(f"{len(have)} cells instead of {len(want)}")
    return problems


def _skeleton(notebook: NotebookNode) -> list[dict[str, object]]:
    parts = ("cell_type", "source", "id", "metadata")
    return [{part: cell[part] for part in parts} for cell in notebook.cells]
