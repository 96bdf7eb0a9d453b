"""Predict, then look: a question whose answers aim at real misconceptions."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping

import ipywidgets as widgets
from matplotlib.figure import Figure

from dqlab.errors import InvalidInputError
from dqlab.show.bundle import SCALE, Live, Picture, figure_png
from dqlab.show.panel import put_plates
from dqlab.show.roles import style

WIDTH, LINE = 600, 18  # of the picture of a question, in CSS pixels
SHADES = 4  # ink, plate and the edges between them


class Question:
    """A prediction question with two to four answers.

    `answers`: {key: text}; `why`: {key: what is true or tempting about that answer}, one for
    each key; `correct`: the key of the right answer, computed from a measured value by the
    caller. Show it as the last line of a cell; `reveal(picture)` in the next cell shows the
    result with the reader's choice beside it.
    """

    def __init__(self, prompt: str, answers: Mapping[str, str], correct: str,
                 why: Mapping[str, str]) -> None:  # fmt: skip
        if not 2 <= len(answers) <= 4:
            raise InvalidInputError(f"{len(answers)} answers to {prompt!r}: give two to four.")
        if correct not in answers:
            raise InvalidInputError(f"The right answer {correct!r} is none of {list(answers)}.")
        if set(why) != set(answers):
            raise InvalidInputError(
                f"Every answer needs its sentence: answers {sorted(answers)}, why {sorted(why)}."
            )
        self.prompt, self.answers, self.correct, self.why = prompt, answers, correct, why
        self.choice = widgets.RadioButtons(
            options=[(f"{key}: {text}", key) for key, text in answers.items()],
            index=None,
            layout=widgets.Layout(width="auto"),
        )
        words = self._words()
        self._bundle = Live(self._widget(), words, _drawn(words), self._page())

    def _widget(self) -> widgets.VBox:
        prompt = widgets.HTML(f"<strong>Predict, then look.</strong> {html.escape(self.prompt)}")
        return widgets.VBox([prompt, self.choice])

    def _words(self) -> str:
        lines = [f"  {key}: {text}" for key, text in self.answers.items()]
        return "\n".join([f"Predict, then look. {self.prompt}", *lines])

    def _page(self) -> str:
        items = "".join(
            f"<li>{html.escape(f'{key}: {text}')}</li>" for key, text in self.answers.items()
        )
        reasons = "".join(
            f"<li>{html.escape(f'{key}: {self.why[key]}')}</li>" for key in self.answers
        )
        return (
            f"<p><strong>Predict, then look.</strong> {html.escape(self.prompt)}</p>"
            f"<ul>{items}</ul><details><summary>Answer</summary><p>{html.escape(self.answer())}"
            f"</p><ul>{reasons}</ul></details>"
        )

    def answer(self) -> str:
        """The right answer as one sentence."""
        return f"Answer {self.correct}: {self.answers[self.correct]}."

    def verdict(self, key: str | None) -> str:
        """What to say to a reader who chose `key` (None: no choice was made)."""
        if key is None:
            return f"No prediction made. {self.answer()} {self.why[self.correct]}"
        chosen = f"You predicted {key}: {self.answers[key]}."
        if key == self.correct:
            return f"{chosen} That is what happens. {self.why[key]}"
        return f"{chosen} {self.why[key]} {self.answer()} {self.why[self.correct]}"

    def reveal(self, picture: Picture) -> Live:
        """The result with the reader's choice and a sentence on why above it, kept in step."""
        line = widgets.HTML()

        def refresh(_: object = None) -> None:
            line.value = (
                f'<p aria-live="polite">{html.escape(self.verdict(self.choice.value))}</p>'
            )

        self.choice.observe(refresh, names="value")
        refresh()
        words = f"{self.answer()} {self.why[self.correct]}\n{picture.sentence}"
        return Live(widgets.VBox([line, widgets.HTML(picture.img())]), words, picture)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple:
        return self._bundle._repr_mimebundle_()

    def __repr__(self) -> str:
        return self._bundle.words


@style()
def _drawn(words: str) -> Picture:
    """The question as a picture, where neither a widget nor HTML is shown."""
    lines = [textwrap.fill(line, 80, subsequent_indent="    ") for line in words.splitlines()]
    text = "\n".join(lines)
    size = (WIDTH, LINE * (text.count("\n") + 2))
    figure = Figure([s / 72 for s in size], dpi=72 * SCALE)
    figure.text(10 / size[0], 1 - 10 / size[1], text, ha="left", va="top", linespacing=1.35)
    put_plates(figure)
    return Picture(figure_png(figure, SHADES), words, size)
