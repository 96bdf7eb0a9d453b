"""Plain charts with a given sentence: lines, points, a weight matrix, rows of pictures.

For findings whose sentence is made elsewhere (`dqlab.phenomena.verdicts`); the other modules of
this package write their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dqlab.show.bundle import Picture
from dqlab.show.frames import require, timeline, to_array
from dqlab.show.panel import Canvas
from dqlab.show.roles import MAGNITUDE_MAP, RULE, assign_roles, label_of, role, style
from dqlab.show.strips import _checked, _sheet


@style()
def lines(frame: pd.DataFrame, sentence: str, *, x: str, y: str, axes: tuple[str, str],
          roles: Mapping[str, str] | None = None, log: bool = False, falling: bool = False,
          marks: bool = False, at: tuple[float, str] | None = None, steps: bool = False,
          width: int = 760, height: int = 360) -> Picture:  # fmt: skip
    """One line per `series` of a tidy frame.

    `axes`: the names of both axes. `steps`: x is the sampler step, and a column timestep names
    the t of each. `log`: logarithmic y. `falling`: x runs from high to low, for
    t from noise to picture. `at`: a vertical line at x with words beside it.
    """
    require(frame, ("series", x, y), "lines")
    canvas = Canvas(width, height)
    panel = canvas.panels[0]
    if log:
        panel.log_scale()
    for label, look in assign_roles(list(frame["series"].unique()), dict(roles or {})).items():
        part = frame[frame["series"] == label].sort_values(x, ascending=not falling)
        panel.line(part[x].tolist(), part[y].tolist(), look, label_of(label), marks)
    if steps:
        panel.time_axis(*timeline(frame))
    else:
        ends = frame[x].min(), frame[x].max()
        panel.axes.set_xlim(*(ends[::-1] if falling else ends))
        panel.axes.set_xlabel(axes[0])
    if at is not None:
        panel.axes.set_ylim(*panel.axes.get_ylim())
        look = role("quoted")
        panel.line([at[0]] * 2, list(panel.axes.get_ylim()), look, "", marks=False)
        panel.remark(at[0], at[1])
    panel.axes.set_ylabel(axes[1])
    panel.axes.grid(axis="y")
    return canvas.picture(sentence)


@style()
def points(frame: pd.DataFrame, sentence: str, *, x: str, y: str, label: str,
           axes: tuple[str, str], highlight: Sequence[str] = (), log: bool = False,
           width: int = 760, height: int = 420) -> Picture:  # fmt: skip
    """Labelled points; those in `highlight` stand out in the colour of the method."""
    require(frame, (x, y, label), "points")
    canvas = Canvas(width, height)
    panel = canvas.panels[0]
    if log:
        panel.axes.set_xscale("log")
    for row in frame[[x, y, label]].itertuples(index=False):
        look = role("method" if row[2] in highlight else "rtn")
        panel.line([row[0]], [row[1]], look, "")
        panel.axes.annotate(row[2], (row[0], row[1]), (0, 10), textcoords="offset points",
                            ha="center")  # fmt: skip
    panel.axes.margins(0.08, 0.14)
    panel.axes.set_xlabel(axes[0])
    panel.axes.set_ylabel(axes[1])
    panel.axes.grid()
    return canvas.picture(sentence)


@style()
def weight_error(error: Any, scales: Any, sentence: str, *, limit: float, width: int = 760,
                 height: int = 420) -> Picture:  # fmt: skip
    """Rounding error of a weight matrix [rows, columns] beside the scale of each row.

    `limit` is the top of the colour scale, shared by pictures to be compared.
    """
    cells, heights = np.abs(to_array(error, "weight_error")), to_array(scales, "weight_error")
    rows = np.arange(len(cells))
    canvas = Canvas(width, height, widths=(0.16, 1))
    strip, main = canvas.panels
    strip.axes.barh(rows, heights, color=RULE, height=0.9)
    strip._note_trace("bar", x=heights, y=rows, orientation="h", marker={"color": RULE})
    strip.axes.set(ylim=(len(rows) - 0.5, -0.5), ylabel="output channel", xlabel="scale s")
    strip.axes.locator_params(axis="x", nbins=2)
    names = ([f"channel {r}" for r in rows], [f"weight {c}" for c in range(cells.shape[1])])
    image = main.heat(cells, MAGNITUDE_MAP, (0.0, limit), "", names)
    main.axes.set(xlabel="weights of the channel", yticks=[])
    canvas.colour_bar(image, "rounding error (absolute)")
    return canvas.picture(sentence)


@style()
def picture_rows(rows: Mapping[str, Any], heads: Sequence[str], sentence: str, *,
                 roles: Mapping[str, str] | None = None,
                 value_range: tuple[float, float] = (-1.0, 1.0)) -> Picture:  # fmt: skip
    """Rows of pictures {label: [N, 3, H, W]}, N at most 7, under N column heads."""
    images = _checked(rows, value_range)
    return _sheet(images, heads, None, roles, value_range, sentence, {})
