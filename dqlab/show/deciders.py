"""The decider axis: the ratio that decides whether a method's effect exists, and who lies where.

On a logarithmic axis of the ratio stand the gain on a made-up layer as a curve, our layers as
solid points, an injection's as points of another look, and what a paper reports, hollow.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from dqlab.show.bundle import Picture
from dqlab.show.charts import light
from dqlab.show.frames import require
from dqlab.show.panel import Canvas, Panel
from dqlab.show.roles import Role, role, style


@style()
def decider(curve: pd.DataFrame, ours: Mapping[str, pd.DataFrame], sentence: str, *,
            axes: tuple[str, str], quoted: Mapping[str, float] | None = None,
            curve_name: str = "made-up layer", roles: Mapping[str, str] | None = None,
            width: int = 720, height: int = 360) -> Picture:  # fmt: skip
    """Draw the axis.

    `curve`: columns ratio, gain. `ours`: {label: the same columns, a row per layer}; the first
    takes the method's look, the next those of the ablations, unless `roles` says otherwise.
    `quoted`: {words: ratio} a paper reports; its gain is not known, so it stands on the ground.
    """
    require(curve, ("ratio", "gain"), "decider")
    canvas = Canvas(width, height)
    panel = canvas.panels[0]
    panel.axes.set_xscale("log")
    panel.axes.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
    panel.axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    panel.axes.xaxis.set_minor_locator(NullLocator())
    panel.line(curve["ratio"].tolist(), curve["gain"].tolist(), role("full_precision"),
               curve_name, marks=False)  # fmt: skip
    given = dict(zip(ours, ("method", "ablation_1", "ablation_2"), strict=False)) | (roles or {})
    for label, frame in ours.items():
        _points(panel, require(frame, ("ratio", "gain"), "decider"), role(given[label]), label)
    ground = panel.axes.get_ylim()[0]
    for words, ratio in (quoted or {}).items():
        panel.line([ratio], [ground], role("quoted"), "")
        _name(panel, ratio, ground, words)
    panel.axes.set(xlabel=axes[0], ylabel=axes[1])
    panel.axes.grid(axis="y")
    return light(canvas.picture(sentence))


def _points(panel: Panel, frame: pd.DataFrame, look: Role, label: str) -> None:
    for x, y in frame[["ratio", "gain"]].itertuples(index=False):
        panel.line([x], [y], look, "")
    top = frame.loc[frame["gain"].idxmax()]
    _name(panel, float(top["ratio"]), float(top["gain"]), label)


def _name(panel: Panel, x: float, y: float, words: str) -> None:
    """Words above a point, left of it."""
    panel.axes.annotate(words, (x, y), (-6, 12), textcoords="offset points", ha="right")
    panel.notes.append({
        "x": float(np.log10(x)), "y": y, "text": words, "showarrow": False, "xshift": -6,
        "yshift": 18, "xanchor": "right", "xref": f"x{panel.number}", "yref": f"y{panel.number}",
    })  # fmt: skip
