"""A histogram of values with the quantizer's levels as a comb under it, for all formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dqlab.errors import InvalidInputError
from dqlab.show.bundle import Picture, number, percent
from dqlab.show.frames import to_array
from dqlab.show.panel import Canvas, Panel
from dqlab.show.roles import ROLES, RULE, Role, assign_roles, label_of, style

RARE = 0.01  # "1 % of the values"
SPOKEN_VOWELS = ("8", "fp", "a", "e", "i", "o")  # "an 8-bit", "an fp4", "an int4" grid


def comb_facts(values: Any, levels: Any) -> dict[str, Any]:
    """How a set of levels serves the values.

    levels: number of levels; idle: how many of them share at most 1 % of the values, rarest
    first; clipped: share of values more than half a step beyond the outer levels; step: width
    between the two levels around the median value.
    """
    values = to_array(values, "comb").ravel()
    levels = np.unique(to_array(levels, "comb"))
    if len(levels) < 2:
        raise InvalidInputError("A comb needs at least two levels: this format has one value.")
    middles = (levels[1:] + levels[:-1]) / 2
    counts = np.sort(np.bincount(np.searchsorted(middles, values), minlength=len(levels)))
    low, high = levels[0] - (middles[0] - levels[0]), levels[-1] + (levels[-1] - middles[-1])
    tooth = int(np.clip(np.searchsorted(levels, np.median(values)), 1, len(levels) - 1))
    return {
        "levels": len(levels),
        "idle": int((np.cumsum(counts) <= RARE * len(values)).sum()),
        "clipped": float(((values < low) | (values > high)).mean()),
        "step": float(levels[tooth] - levels[tooth - 1]),
        "tooth": (float(levels[tooth - 1]), float(levels[tooth])),
        "reach": (float(low), float(high)),
    }


def comb_sentence(facts: Mapping[str, Any], name: str) -> str:
    """The finding for one comb, from `comb_facts`."""
    article = "An" if name.lower().startswith(SPOKEN_VOWELS) else "A"
    if facts["clipped"] >= RARE:
        return (
            f"{article} {name} grid clips {percent(facts['clipped'])} of the values; its step is "
            f"{number(facts['step'])}."
        )
    if facts["idle"]:
        return (
            f"{article} {name} grid spends {facts['idle']} of its {facts['levels']} levels on "
            f"1 % of the values."
        )
    return (
        f"{article} {name} grid uses all of its {facts['levels']} levels: "
        f"no level holds less than 1 % of the values."
    )


@style()
def comb(values: Any, levels: Any, *, name: str = "4-bit", unit: str = "value",
         roles: Mapping[str, str] | None = None, log: bool = False, bins: int = 80,
         sentence: str | None = None, width: int = 760,
         height: int = 380) -> Picture:  # fmt: skip
    """Histogram of `values` (any shape) with a comb of the representable `levels` under it.

    `levels`: an array of levels called `name`, or {name: levels} to compare several grids on the
    same values; the mass the first grid clips is hatched, and one of its steps is marked. `name`
    fills "A {name} grid ...". `log` counts on a logarithmic axis. Two grids or more take the
    looks of rtn, method, ... in order unless `roles` says otherwise. `sentence` replaces the one
    that says how the grids serve the values.
    """
    values = to_array(values, "comb").ravel()
    grids = dict(levels) if isinstance(levels, Mapping) else {name: levels}
    looks = assign_roles(list(grids), {**_in_order(list(grids)), **(roles or {})})
    facts = {label: comb_facts(values, grid) for label, grid in grids.items()}
    canvas = Canvas(width, height + 26 * len(grids), heights=(3, 0.42 * len(grids) + 0.3),
                    sharex=True)  # fmt: skip
    _histogram(canvas.panels[0], values, next(iter(facts.values())), bins, log)
    _teeth(canvas.panels[1], grids, facts, looks)
    canvas.panels[1].axes.set_xlabel(unit)
    first = next(iter(facts))
    told = " ".join(comb_sentence(f, label_of(label)) for label, f in facts.items())
    return canvas.picture(sentence or told, facts if len(facts) > 1 else facts[first])


def _in_order(labels: list[str]) -> dict[str, str]:
    names = ["rtn", "method", "ablation_1", "ablation_2"]
    return {label: label if label in ROLES else name
            for label, name in zip(labels, names, strict=False)}  # fmt: skip


def _histogram(panel: Panel, values: np.ndarray, facts: Mapping[str, Any], bins: int,
               log: bool) -> None:  # fmt: skip
    low, high = np.clip(facts["reach"], values.min(), values.max())
    edges = np.unique(np.concatenate([np.linspace(values.min(), values.max(), bins), [low, high]]))
    if len(edges) < 2:
        edges = np.array([values[0] - 0.5, values[0] + 0.5])
    # A density, since the two clip points cut bins of their own width.
    heights = np.histogram(values, edges)[0] / len(values) / np.diff(edges)
    outside = (edges[1:] <= low) | (edges[:-1] >= high)
    panel.bars(edges, np.where(outside, 0, heights), RULE)
    if facts["clipped"] > 0:
        panel.bars(edges, np.where(outside, heights, 0), ROLES["rtn"].colour, hatch="///")
        side = edges[-1] if values.max() - high >= low - values.min() else edges[0]
        panel.remark(side, f"clipped {percent(facts['clipped'])}")
    if log:
        panel.log_scale()
    panel.axes.set_ylabel("density")


def _teeth(panel: Panel, grids: Mapping[str, Any], facts: Mapping[str, Any],
           looks: Mapping[str, Role]) -> None:  # fmt: skip
    for row, (label, grid) in enumerate(grids.items()):
        panel.comb(np.unique(to_array(grid, "comb")), -row - 0.8, -row - 0.15, looks[label], label)
    panel.axes.set_ylim(-len(grids), 0.9)
    panel.axes.set_yticks([-row - 0.5 for row in range(len(grids))], [label_of(n) for n in grids])
    panel.axes.tick_params(axis="y", length=0)
    panel.axes.spines["left"].set_visible(False)
    first = next(iter(facts.values()))
    panel.measure(*first["tooth"], 0.25, f"one step = {number(first['step'])}")
