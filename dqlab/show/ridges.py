"""Ridges: a histogram at every sampler step, marching from noise to image.

Over them lie ranges: one for all steps as a band, one per step as a ribbon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from dqlab.errors import InvalidInputError
from dqlab.show.bundle import Picture
from dqlab.show.frames import timeline, to_array
from dqlab.show.panel import Canvas, Panel
from dqlab.show.roles import ROLES, RULE, Role, style

BINS = 48
HEIGHT = 0.92
"""Width of the tallest ridge, in steps."""


@style()
def ridges(values: Any, times: pd.DataFrame, sentence: str, *,
           band: tuple[float, float] | None = None, band_name: str = "one range for all steps",
           ribbon: tuple[Sequence[float], Sequence[float]] | None = None,
           ribbon_name: str = "a range per step", limits: tuple[float, float] | None = None,
           unit: str = "activation value", size: tuple[int, int] = (760, 420),
           ) -> Picture:  # fmt: skip
    """Draw them.

    `values`: `[T, M]`, those of each step. `times`: columns step, timestep, a row per step. `band`
    and `ribbon`: lowest and highest level, one pair or `T` of each, and what their labels say.
    `limits` of the value axis, for pictures to be compared. Raises InvalidInputError if the values
    do not have a row per step.
    """
    rows = to_array(values, "ridges")
    steps, timesteps = timeline(times)
    if rows.ndim != 2 or len(rows) != len(steps):
        raise InvalidInputError(
            f"ridges got values of shape {rows.shape} for {len(steps)} steps; give one row a step."
        )
    canvas = Canvas(*size)
    panel = canvas.panels[0]
    panel.time_axis(steps, timesteps)
    panel.axes.set_xlim(steps[0] - 0.5, steps[-1] + 1)
    low, high = limits or (float(rows.min()), float(rows.max()))
    if band is not None:
        panel.band(*band, ROLES["rtn"], band_name)
    _ridges(panel, rows, steps, np.linspace(low, high, BINS + 1))
    if ribbon is not None:
        _ribbon(panel, steps, *ribbon, ROLES["method"], ribbon_name)
    panel.axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    panel.axes.set_ylabel(unit)
    return canvas.picture(sentence)


def _ridges(panel: Panel, rows: np.ndarray, steps: Sequence[int], edges: np.ndarray) -> None:
    """Each step's histogram on its side, as tall as the square root of its density.

    The square root lets the thin tails be seen, which is where ranges differ.
    """
    middles = (edges[1:] + edges[:-1]) / 2
    counts = np.stack([np.histogram(row, edges)[0] for row in rows]).astype(float)
    heights = HEIGHT * np.sqrt(counts / counts.max(axis=1, keepdims=True).clip(1))
    for step, ridge in zip(steps, heights, strict=True):
        there = np.flatnonzero(ridge)
        part = slice(there[0], there[-1] + 1)
        y, x = middles[part], step + ridge[part]
        panel.axes.fill_betweenx(y, step, x, color=RULE, alpha=0.55, linewidth=0.8)
        panel._polygon([step, *x, step], [y[0], *y, y[-1]], RULE, 0.55)


def _ribbon(panel: Panel, steps: Sequence[int], low: Sequence[float], high: Sequence[float],
            look: Role, label: str) -> None:  # fmt: skip
    ends = [list(map(float, side)) for side in (low, high)]
    panel.ribbon(list(steps), *ends, look)
    panel.line(list(steps), ends[1], look, label)
    panel.line(list(steps), ends[0], look, "")
