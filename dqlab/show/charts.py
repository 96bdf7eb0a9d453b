"""Plain charts with a given sentence: lines, points, a weight matrix, rows of pictures.

For findings whose sentence is made elsewhere (`dqlab.phenomena.verdicts`); the other modules of
this package write their own.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

from dqlab.show.bundle import SCALE, Picture, encode_png, is_quick, number
from dqlab.show.frames import require, timeline, to_array
from dqlab.show.panel import Canvas, Panel
from dqlab.show.roles import MAGNITUDE_MAP, RULE, assign_roles, label_of, role, style
from dqlab.show.strips import _checked, _sheet

COLOURS = 24  # enough for a chart's few looks and their smoothed edges
PLACES = ((0, 11), (0, -15), (26, -2), (-26, -2), (30, 11), (-30, -15), (0, 24), (0, -28))


def light(picture: Picture) -> Picture:
    """The same chart with few colours: a third smaller. One with a colour scale keeps them all."""
    if is_quick():
        return picture
    traces = (picture.plotly or {"data": [{"type": "heatmap"}]})["data"]
    if any(trace["type"] == "heatmap" for trace in traces):
        return picture
    image = Image.open(io.BytesIO(picture.png)).convert("RGBA")
    return replace(picture, png=encode_png(image, COLOURS))


@style()
def lines(frame: pd.DataFrame, sentence: str, *, x: str, y: str, axes: tuple[str, str],
          roles: Mapping[str, str] | None = None, log: bool = False, falling: bool = False,
          marks: bool = False, at: tuple[float, str] | None = None, steps: bool = False,
          width: int = 720, height: int = 330) -> Picture:  # fmt: skip
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
        _upright(panel, *at)
    panel.axes.set_ylabel(axes[1])
    panel.axes.grid(axis="y")
    return light(canvas.picture(sentence))


def _upright(panel: Panel, x: float, words: str) -> None:
    """A vertical line with words at its top."""
    low, high = panel.axes.get_ylim()
    panel.axes.set_ylim(low, high)
    panel.line([x, x], [low, high], role("quoted"), "", marks=False)
    panel.axes.annotate(words, (x, high), (6, -4), textcoords="offset points", va="top")
    top = float(np.log10(high)) if panel.axes.get_yscale() == "log" else high
    panel.notes.append({
        "x": x, "y": top, "text": words, "showarrow": False, "xshift": 6, "xanchor": "left",
        "yanchor": "top", "xref": f"x{panel.number}", "yref": f"y{panel.number}",
    })  # fmt: skip


@style()
def points(frame: pd.DataFrame, sentence: str, *, x: str, y: str, label: str,
           axes: tuple[str, str], highlight: Sequence[str] = (), log: bool = False,
           width: int = 720, height: int = 380) -> Picture:  # fmt: skip
    """Labelled points with intervals; those in `highlight` stand out in the method's colour.

    Intervals come from columns `x`_low, `x`_high, `y`_low and `y`_high where there are such.
    """
    require(frame, (x, y, label), "points")
    canvas = Canvas(width, height)
    panel = canvas.panels[0]
    if log:
        panel.axes.set_xscale("log")
        panel.axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
        panel.axes.xaxis.set_minor_locator(NullLocator())
    for row in frame.to_dict("records"):
        look = role("method" if row[label] in highlight else "rtn")
        across, up = ([row.get(f"{c}_low", row[c]), row.get(f"{c}_high", row[c])] for c in (x, y))
        panel.line(across, [row[y]] * 2, look, "", marks=False)
        panel.line([row[x]] * 2, up, look, "", marks=False)
        panel.line([row[x]], [row[y]], look, "")
    panel.axes.margins(0.08, 0.14)
    panel.axes.set_xlabel(axes[0])
    panel.axes.set_ylabel(axes[1])
    panel.axes.grid()
    _name_points(panel, frame[x].to_numpy(), frame[y].to_numpy(), list(frame[label]))
    return light(canvas.picture(sentence))


def _name_points(panel: Panel, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> None:
    """Write each name at the first of `PLACES` where it covers no point and no other name."""
    panel.axes.figure.draw_without_rendering()
    spots = panel.axes.transData.transform(np.column_stack([x, y])) / SCALE
    taken = [*spots]
    for (left, bottom), at, to, name in zip(spots, x, y, names, strict=True):
        free = [
            (dx, dy) for dx, dy in PLACES
            if not any(abs(left + dx - p[0]) < 34 and abs(bottom + dy - p[1]) < 13
                       for p in taken if not (p[0] == left and p[1] == bottom))
        ]  # fmt: skip
        dx, dy = (free or PLACES)[0]
        taken.append(np.array([left + dx, bottom + dy]))
        panel.axes.annotate(name, (at, to), (dx, dy), textcoords="offset points",
                            ha="center", va="center")  # fmt: skip
        panel.notes.append({
            "x": float(np.log10(at)) if panel.axes.get_xscale() == "log" else at, "y": to,
            "text": name, "showarrow": False, "xshift": dx, "yshift": dy,
            "xref": f"x{panel.number}", "yref": f"y{panel.number}",
        })  # fmt: skip


@style()
def weight_error(error: Any, scales: Any, sentence: str, *, limit: float, top: float,
                 width: int = 760, height: int = 420) -> Picture:  # fmt: skip
    """Rounding error of a weight matrix [rows, columns] beside the scale of each row.

    `limit` ends the colour scale and `top` the scale axis, shared by pictures to be compared.
    """
    cells, heights = np.abs(to_array(error, "weight_error")), to_array(scales, "weight_error")
    rows = np.arange(len(cells))
    canvas = Canvas(width, height, widths=(0.16, 1))
    strip, main = canvas.panels
    strip.axes.barh(rows, heights, color=RULE, height=0.9)
    strip._note_trace("bar", x=heights, y=rows, orientation="h", marker={"color": RULE})
    strip.axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, top), ylabel="output channel",
                   xlabel="scale s", xticks=[0, float(f"{top:.1g}")])  # fmt: skip
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
