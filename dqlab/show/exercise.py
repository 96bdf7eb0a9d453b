"""Exercises: a card that sets the task, and a check that answers in one line."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dqlab.errors import InvalidInputError
from dqlab.show.bundle import Page, Picture


@dataclass(frozen=True)
class Case:
    """What a right answer does: `says` it in words, `holds(answer)` tests it, `hint` helps."""

    says: str
    holds: Callable[[Any], Any]
    hint: str


@dataclass(frozen=True)
class Verdict:
    """`outcome` is "passed", "wrong", "raised" or "not attempted"; `line` is what is printed."""

    outcome: str
    line: str


@dataclass
class Check:
    """Named cases for one exercise. Call it with the reader's function: it prints one line.

    >>> check = Check("double")
    >>> @check.case("double(3) is 6", hint="Multiply, do not add 2.")
    ... def _(answer):
    ...     return answer(3) == 6
    >>> check(lambda x: x + 2)
    double: not yet. Case 1 of 1 fails: double(3) is 6. Hint: Multiply, do not add 2.
    """

    name: str
    cases: list[Case] = field(default_factory=list)

    def case(self, says: str, hint: str) -> Callable[[Callable], Callable]:
        """Decorator: adds a case; the function gets the answer and returns whether it is right."""

        def add(holds: Callable) -> Callable:
            self.cases.append(Case(says.rstrip("."), holds, hint))
            return holds

        return add

    def __call__(self, answer: Any) -> None:
        """Print the verdict on the reader's `answer` in one line."""
        print(self.run(answer).line)

    def run(self, answer: Any) -> Verdict:
        """The verdict on `answer`: the first case that fails decides."""
        if not self.cases:
            raise InvalidInputError(
                f"The check {self.name!r} has no cases: it would pass anything."
            )
        total = len(self.cases)
        for index, case in enumerate(self.cases, 1):
            outcome, story = _outcome(case, answer)
            if outcome == "not attempted":
                return Verdict(outcome, f"{self.name}: not attempted yet.")
            if outcome != "passed":
                where = f"{self.name}: not yet. Case {index} of {total} {story}: {case.says}."
                return Verdict(outcome, f"{where} Hint: {case.hint}")
        return Verdict("passed", f"{self.name}: passed, {total} of {total} cases.")


def _outcome(case: Case, answer: Any) -> tuple[str, str]:
    # Whatever a reader's code raises is an answer to be commented on, never a traceback.
    try:
        right = bool(case.holds(answer))
    except NotImplementedError:
        return "not attempted", ""
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        return "raised", f"stops with {type(error).__name__} ({reason})"
    return ("passed", "") if right else ("wrong", "fails")


def verify_check(check: Check, solution: Any, mistakes: Mapping[str, Any], stub: Any) -> None:
    """Prove that a check is worth having; raises InvalidInputError naming everything amiss.

    It must pass the solution, call the stub not attempted, and find at least two planted mistakes
    wrong by their values: a mistake that merely raises proves nothing.
    """
    amiss = []
    if len(mistakes) < 2:
        amiss.append(f"{len(mistakes)} planted mistakes, two are the least")
    if (verdict := check.run(solution)).outcome != "passed":
        amiss.append(f"the solution does not pass ({verdict.line})")
    if (verdict := check.run(stub)).outcome != "not attempted":
        amiss.append(f"the stub counts as {verdict.outcome}: let it raise NotImplementedError")
    for name, mistake in mistakes.items():
        if (outcome := check.run(mistake).outcome) != "wrong":
            amiss.append(f"the mistake {name!r} counts as {outcome}, not as wrong")
    if amiss:
        raise InvalidInputError(f"The check {check.name!r} is not valid: {'; '.join(amiss)}.")


def exercise(title: str, task: str, *, minutes: int, difficulty: int, hints: Sequence[str],
             expected: Picture | None = None) -> Page:  # fmt: skip
    """An exercise card: task, time, difficulty 1 (warm-up) to 5, hints behind a fold, a picture.

    Raises InvalidInputError for fewer than two hints or a difficulty outside 1 to 5.
    """
    if len(hints) < 2:
        raise InvalidInputError(f"Exercise {title!r} has {len(hints)} hints: give at least two.")
    if difficulty not in range(1, 6):
        raise InvalidInputError(
            f"Exercise {title!r}: difficulty {difficulty}, allowed are 1 to 5."
        )
    facts = f"{minutes} minutes, difficulty {difficulty} of 5"
    folds = [_fold(f"Hint {i}", html.escape(hint)) for i, hint in enumerate(hints, 1)]
    if expected is not None:
        folds.append(_fold("What you should see", expected.html()))
    page = (
        f'<section style="border-left:4px solid #0072B2;padding:2px 12px;max-width:900px">'
        f"<p><strong>Exercise: {html.escape(title)}</strong> ({facts})</p>"
        f"<p>{html.escape(task)}</p>{''.join(folds)}</section>"
    )
    return Page(page, f"Exercise: {title} ({facts}). {task}")


def _fold(summary: str, inner: str) -> str:
    return f"<details><summary>{summary}</summary>{inner}</details>"
