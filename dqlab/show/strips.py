"""Film strips and image grids: full precision on top, quantized under it, the difference below.

Images are drawn at 96 px or more, nearest neighbour, in frames of their role's colour.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dqlab.errors import InvalidInputError
from dqlab.show.bundle import SCALE, Picture, fewer_colours, figure_png, number
from dqlab.show.frames import to_array
from dqlab.show.panel import put_plates
from dqlab.show.roles import (
    MAX_WIDTH,
    PAPER,
    SIGNED_MAP,
    TITLE_FONT,
    Role,
    assign_roles,
    label_of,
    style,
)

CELL, GAP, GUTTER, HEAD, MIN_WIDTH = 96, 14, 124, 40, 560
COLUMNS = 7  # of 96 px beside their row labels, within 960 px


@style()
def film_strip(rows: Mapping[str, Any], steps: Sequence[int], timesteps: Sequence[int],
               difference_gain: float = 4.0, *, roles: Mapping[str, str] | None = None,
               value_range: tuple[float, float] = (-1.0, 1.0)) -> Picture:  # fmt: skip
    """One sample over time. `rows`: {label: images [N, 3, H, W]}, one image per entry of `steps`.

    The first row is full precision; under every other row lies its signed difference from the
    first, times `difference_gain`. Images are floats in `value_range`. At most 7 steps are drawn,
    evenly spaced with the first and last; the numbers above them say which.
    """
    images = _checked(rows, value_range)
    _same_length(images, steps, timesteps)
    picks = even_picks(len(steps), COLUMNS)
    heads = [f"step {steps[i]}\nt = {timesteps[i]}" for i in picks]
    sentence, facts = strip_sentence(images, steps, timesteps, value_range)
    shown = {label: block[picks] for label, block in images.items()}
    return _sheet(shown, heads, difference_gain, roles, value_range, sentence, facts)


@style()
def image_grid(rows: Mapping[str, Any], seeds: Sequence[int] | None = None, *,
               worst: bool = False, count: int = COLUMNS, difference_gain: float | None = None,
               roles: Mapping[str, str] | None = None,
               value_range: tuple[float, float] = (-1.0, 1.0),
               sentence: str | None = None) -> Picture:  # fmt: skip
    """Finished samples side by side, one column per seed. `rows`: {label: images [N, 3, H, W]}.

    Shows the first `count` (at most 7) seeds, or with `worst=True` those where the last row is
    furthest from the first in root-mean-square distance. The title's median is over all N;
    `sentence` replaces it. `difference_gain` adds difference rows as in `film_strip`.
    """
    images = _checked(rows, value_range)
    total = len(next(iter(images.values())))
    seeds = list(range(total)) if seeds is None else list(seeds)
    _same_length(images, seeds)
    distance = paired_rms(images)
    order = np.argsort(-distance, kind="stable") if worst else np.arange(total)
    picks = order[: min(count, COLUMNS)]
    found, facts = grid_sentence(list(images)[-1], distance, seeds, len(picks), worst)
    shown = {label: block[picks] for label, block in images.items()}
    heads = [f"seed {seeds[i]}" for i in picks]
    return _sheet(shown, heads, difference_gain, roles, value_range, sentence or found, facts)


def paired_rms(images: Mapping[str, np.ndarray]) -> np.ndarray:
    """Root-mean-square difference [N] between the last and the first row of images."""
    first, last = next(iter(images.values())), list(images.values())[-1]
    return np.sqrt(((last - first) ** 2).mean(axis=(1, 2, 3)))


def signed_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Per pixel [N, H, W] the difference a - b of the channel that differs most, with its sign.

    A mean over channels would hide a shift of hue, whose channels cancel.
    """
    difference = a - b
    channel = np.abs(difference).argmax(axis=1, keepdims=True)
    return np.take_along_axis(difference, channel, axis=1)[:, 0]


def even_picks(total: int, count: int) -> list[int]:
    """At most `count` indices into `total`, evenly spaced, first and last included."""
    return [int(i) for i in np.unique(np.linspace(0, total - 1, min(count, total)).round())]


def strip_sentence(images: Mapping[str, np.ndarray], steps: Sequence[int],
                   timesteps: Sequence[int], value_range: tuple) -> tuple[str, dict]:  # fmt: skip
    """How far the last row ends from the first, and by which step half of that was there."""
    distance = paired_rms(images)
    end = float(distance[-1])
    half = int(np.argmax(distance >= end / 2))
    facts = {"distance": distance, "end": end, "half_step": int(steps[half])}
    name = label_of(list(images)[-1])
    if len(images) == 1 or end == 0:
        tail = "a single trajectory" if len(images) == 1 else "the same picture at every step"
        return f"{name}: {tail}, from step {steps[0]} to step {steps[-1]}.", facts
    width = number(value_range[1] - value_range[0])
    return (
        f"{name} ends {number(end)} RMS away from full precision (values span {width}); half of "
        f"that is there by step {steps[half]} of {steps[-1]} (t = {timesteps[half]})."
    ), facts


def grid_sentence(label: str, distance: np.ndarray, seeds: Sequence[int], count: int,
                  worst: bool) -> tuple[str, dict]:  # fmt: skip
    """The median paired distance over all samples, its worst seed, and which seeds are shown."""
    top = int(np.argmax(distance))
    facts = {"median": float(np.median(distance)), "worst": float(distance[top]),
             "worst_seed": int(seeds[top])}  # fmt: skip
    chosen = f"the {count} worst of {len(seeds)}" if worst else f"the first {count} seeds"
    return (
        f"{label_of(label)}: median paired RMS difference {number(facts['median'])}, worst "
        f"{number(facts['worst'])} at seed {seeds[top]}; shown: {chosen}."
    ), facts


def _checked(rows: Mapping[str, Any], value_range: tuple[float, float]) -> dict[str, np.ndarray]:
    if not rows:
        raise InvalidInputError("There are no images: pass {label: images [N, 3, H, W]}.")
    images = {label: to_array(block, f"The row {label!r}") for label, block in rows.items()}
    for label, array in images.items():
        if array.ndim != 4 or array.shape[1] not in (1, 3):
            raise InvalidInputError(
                f"Row {label!r} has shape {array.shape}: images are [N, 3, H, W] (or one channel)."
            )
    shapes = {label: array.shape for label, array in images.items()}
    if len(set(shapes.values())) > 1:
        raise InvalidInputError(f"Rows must have the same shape, but are {shapes}.")
    if value_range[0] >= value_range[1]:
        raise InvalidInputError(f"value_range={value_range}: the first must be the smaller.")
    return {label: np.clip(array, *value_range) for label, array in images.items()}


def _same_length(images: Mapping[str, np.ndarray], *others: Sequence) -> None:
    lengths = [len(next(iter(images.values()))), *(len(o) for o in others)]
    if len(set(lengths)) > 1:
        raise InvalidInputError(
            f"{lengths[0]} images per row, but {', '.join(map(str, lengths[1:]))} column names: "
            f"pass one per image."
        )


def _rows(
    images: Mapping[str, np.ndarray],
    gain: float | None,
    looks: Mapping[str, Role],
    value_range: tuple[float, float],
) -> list[tuple[str, np.ndarray, Role, bool]]:
    """(label, pixels [N, H, W, 3] in [0, 1], look, is a difference) from top to bottom."""
    low, high = value_range
    first, rows = next(iter(images.values())), []
    for label, block in images.items():
        pixels = ((block - low) / (high - low)).transpose(0, 2, 3, 1)
        rows.append(
            (label_of(label), np.broadcast_to(pixels, (*pixels.shape[:3], 3)), looks[label], False)
        )
        if gain is not None and block is not first:
            shade = 0.5 + 0.5 * gain * signed_difference(block, first) / (high - low)
            tint = matplotlib.colormaps[SIGNED_MAP](np.clip(shade, 0, 1))
            rows.append((f"difference × {number(gain)}", tint[..., :3], looks[label], True))
    palette = fewer_colours(np.stack([row[1] for row in rows]))
    return [(row[0], pixels, *row[2:]) for row, pixels in zip(rows, palette, strict=True)]


def _sheet(
    images: Mapping[str, np.ndarray],
    heads: Sequence[str],
    gain: float | None,
    roles: Mapping[str, str] | None,
    value_range: tuple[float, float],
    sentence: str,
    facts: Mapping[str, Any],
) -> Picture:
    """All rows in one pair of axes whose unit is the CSS pixel, so that pixels stay square."""
    rows = _rows(images, gain, assign_roles(list(images), dict(roles or {})), value_range)
    tall, wide = next(iter(images.values())).shape[2:]
    zoom = -(-CELL // max(tall, wide))
    tall, wide = tall * zoom, wide * zoom
    size = (max(GUTTER + len(heads) * (wide + GAP), MIN_WIDTH), HEAD + len(rows) * (tall + GAP))
    sheet = PixelSheet(sentence, size)
    for column, words in enumerate(heads):
        sheet.words(GUTTER + column * (wide + GAP) + wide / 2, HEAD / 2, words, "center")
    for row, (label, pixels, look, faint) in enumerate(rows):
        top = HEAD + row * (tall + GAP) + GAP / 2
        sheet.words(GUTTER - 10, top + tall / 2, textwrap.fill(label, 14), "right")
        for column, image in enumerate(pixels):
            sheet.image(image, GUTTER + column * (wide + GAP), top, wide, tall)
            sheet.frame(GUTTER + column * (wide + GAP), top, wide, tall, look, faint)
    return sheet.picture(facts)


class PixelSheet:
    """A title over a drawing area measured in CSS pixels from its upper left corner."""

    def __init__(self, sentence: str, size: tuple[int, int]) -> None:
        self.sentence = sentence
        title = textwrap.fill(sentence, int(size[0] / 8.6))
        top = 14 + 20 * (title.count("\n") + 1)
        self.size = (int(size[0]), int(size[1]) + top)
        if self.size[0] > MAX_WIDTH:
            raise InvalidInputError(
                f"These images need {self.size[0]} px side by side and {MAX_WIDTH} fit a page: "
                f"show fewer or smaller ones."
            )
        self.figure = Figure([s / 72 for s in self.size], dpi=72 * SCALE)
        self.axes = self.figure.add_axes((0, 0, 1, size[1] / self.size[1]))
        self.axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
        self.axes.axis("off")
        self.figure.text(
            10 / size[0],
            1 - 6 / self.size[1],
            title,
            ha="left",
            va="top",
            fontsize=TITLE_FONT,
            linespacing=1.25,
        )

    def words(self, x: float, y: float, words: str, align: str) -> None:
        """Text centred vertically on y."""
        self.axes.text(x, y, words, ha=align, va="center", linespacing=1.15)

    def image(self, pixels: np.ndarray, left: float, top: float, wide: float, tall: float) -> None:
        """An image [H, W, 3] in [0, 1], nearest neighbour."""
        self.axes.imshow(
            np.clip(pixels, 0, 1),
            interpolation="nearest",
            aspect="auto",
            extent=(left, left + wide, top + tall, top),
        )
        self.axes.set(xlim=self.axes.get_xlim(), ylim=self.axes.get_ylim())

    def frame(
        self, left: float, top: float, wide: float, tall: float, look: Role, faint: bool = False
    ) -> None:
        """A frame around a box in a role's colour and line style."""
        box = {"xy": (left - 2, top - 2), "width": wide + 4, "height": tall + 4, "fill": False}
        if not faint:
            self.axes.add_patch(Rectangle(**box, edgecolor=PAPER, linewidth=5, zorder=3))
        self.axes.add_patch(
            Rectangle(**box, edgecolor=look.colour, linewidth=1 if faint else 3, zorder=3)
        )

    def picture(self, facts: Mapping[str, Any]) -> Picture:
        """The finished sheet; a figure without a plotly twin."""
        put_plates(self.figure)
        return Picture(figure_png(self.figure), self.sentence, self.size, None, facts)
