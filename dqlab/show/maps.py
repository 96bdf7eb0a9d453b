"""Heat maps: layers x steps with the U-Net's valley beside, and weight x activation bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dqlab.errors import InvalidInputError
from dqlab.show.bundle import Picture, number
from dqlab.show.frames import matrix, require, timeline
from dqlab.show.panel import Canvas, Panel
from dqlab.show.roles import MAGNITUDE_MAP, SIGNED_MAP, readable_ink, style

BRANCHES = ("down", "middle", "up")
MAX_LABELS = 26


@style()
def layer_step_map(frame: pd.DataFrame, *, value: str = "value", unit: str = "SQNR [dB]",
                   worst: str = "low", signed: bool = False,
                   limits: tuple[float, float] | None = None, width: int = 900,
                   height: int | None = None) -> Picture:  # fmt: skip
    """Layers (top to bottom in execution order) against sampling steps (left to right).

    `frame`: columns layer, step, timestep, `value`, and optionally branch ("down", "middle",
    "up"): with it, the margin draws the U-Net's valley. Layers keep the order of their first row.
    `worst` says which end of the scale is bad ("low" or "high"); `signed` centres colours on 0.
    """
    require(frame, ("layer", "step", "timestep", value), "layer_step_map")
    if worst not in ("low", "high"):
        raise InvalidInputError(f"worst={worst!r}: say 'low' or 'high'.")
    layers = list(dict.fromkeys(frame["layer"]))
    table = matrix(frame, "layer", "step", value).loc[layers]
    steps, timesteps = timeline(frame)
    branches = _branches(frame, layers)
    height = height or int(np.clip(130 + 17 * len(layers), 260, 620))
    canvas = Canvas(width, height, widths=(0.06, 1) if branches else (1,))
    main = canvas.panels[-1]
    names = (layers, [f"step {s}, t = {t}" for s, t in zip(steps, timesteps, strict=True)])
    cells = table.to_numpy(dtype=float)
    image = main.heat(cells, *_colours(cells, signed, limits), unit, names)
    main.time_axis(steps, timesteps, at=range(len(steps)))
    if branches:
        _valley(canvas.panels[0], branches)
        main.axes.set_yticks([])
    words, facts = layer_sentence(table, dict(zip(steps, timesteps, strict=True)), unit, worst,
                                  branches)  # fmt: skip
    _layer_axis(canvas.panels[0], layers, layers.index(facts["layer"]))
    canvas.colour_bar(image, unit)
    return canvas.picture(words, facts)


def layer_sentence(table: pd.DataFrame, times: Mapping[int, int], unit: str, worst: str,
                   branches: Sequence[str]) -> tuple[str, dict]:  # fmt: skip
    """The worst cell of a layer x step table, and the branch that is worst on average."""
    cells = table.stack()
    layer, step = cells.idxmin() if worst == "low" else cells.idxmax()
    extreme, word = float(cells[(layer, step)]), "lowest" if worst == "low" else "highest"
    facts: dict[str, Any] = {"layer": layer, "step": int(step), "value": extreme}
    where = f"{layer} at step {step} (t = {times[step]})"
    sentence = f"{word.capitalize()}: {number(extreme, 3)} {_symbol(unit)}, {where}"
    if len(set(branches)) > 1:
        means = table.mean(axis=1).groupby(np.asarray(branches)).mean()
        branch = means.idxmin() if worst == "low" else means.idxmax()
        facts |= {"branch": branch, "branch_mean": float(means[branch])}
        sentence += (
            f"; on average the {branch} branch is {word} ({number(means[branch], 3)} "
            f"{_symbol(unit)})"
        )
    return sentence.replace("  ", " ") + ".", facts


@style()
def bits_map(frame: pd.DataFrame, *, value: str = "db", unit: str = "mean SQNR [dB]",
             limits: tuple[float, float] | None = None, width: int = 620,
             height: int = 420) -> Picture:  # fmt: skip
    """Weight bits (down) against activation bits (across), the value written in every cell.

    `frame`: columns weights, activations, `value`; missing pairs stay empty. The title compares
    lowering the weights with lowering the activations, from the highest bits to the lowest.
    """
    require(frame, ("weights", "activations", value), "bits_map")
    table = matrix(frame, "weights", "activations", value)
    table = table.sort_index(ascending=False).sort_index(axis=1, ascending=False)
    cells = table.to_numpy(dtype=float)
    names = ([f"W{_bits(w)}" for w in table.index], [f"A{_bits(a)}" for a in table.columns])
    canvas = Canvas(width, height)
    panel = canvas.panels[0]
    image = panel.heat(cells, *_colours(cells, False, limits), unit, names)
    for (row, column), number_ in np.ndenumerate(cells):
        if np.isfinite(number_):
            shade = image.cmap(image.norm(number_))
            panel.text(column, row, number(number_, 3), readable_ink(shade[:3]), fontsize=14)
    panel.axes.set_yticks(range(len(names[0])), names[0])
    panel.axes.set_xticks(range(len(names[1])), names[1])
    panel.axes.set_ylabel("weight bits")
    panel.axes.set_xlabel("activation bits")
    canvas.colour_bar(image, unit)
    return canvas.picture(*bits_sentence(table, unit))


def bits_sentence(table: pd.DataFrame, unit: str) -> tuple[str, dict]:
    """What fewer weight bits and fewer activation bits cost, each with the other kept high."""
    shared = sorted(set(table.index) & set(table.columns))
    low, high = (shared[0], shared[-1]) if len(shared) > 1 else (None, None)
    w_low, a_low = (low, low) if shared[1:] else (table.index[-1], table.columns[-1])
    w_high, a_high = (high, high) if shared[1:] else (table.index[0], table.columns[0])
    top = table.loc[w_high, a_high]
    facts = {"weights": float(top - table.loc[w_low, a_high]),
             "activations": float(top - table.loc[w_high, a_low])}  # fmt: skip
    symbol = _symbol(unit)
    harder = "Activations" if facts["activations"] > facts["weights"] else "Weights"
    return (
        f"{harder} are the harder half: from W{_bits(w_high)}A{_bits(a_high)}, "
        f"A{_bits(a_low)} costs {number(facts['activations'])} {symbol} and W{_bits(w_low)} "
        f"costs {number(facts['weights'])} {symbol}."
    ), facts


def _branches(frame: pd.DataFrame, layers: Sequence[str]) -> list[str]:
    if "branch" not in frame:
        return []
    first = frame.drop_duplicates("layer").set_index("layer")["branch"]
    found = [str(first[layer]) for layer in layers]
    if odd := set(found) - set(BRANCHES):
        raise InvalidInputError(
            f"Unknown branch {', '.join(sorted(odd))}: use {', '.join(BRANCHES)}, or leave the "
            f"column out for a network without a valley."
        )
    return found


def _valley(panel: Panel, branches: Sequence[str]) -> None:
    """The depth of each layer as a line: in at the top, down to the middle, up at the bottom."""
    rows, kind = np.arange(len(branches)), np.asarray(branches)
    depth = np.ones(len(branches))
    for branch, (start, end) in {"down": (0.0, 1.0), "up": (1.0, 0.0)}.items():
        depth[kind == branch] = np.linspace(start, end, int((kind == branch).sum()))
    names = {b: float(rows[kind == b].mean()) for b in BRANCHES if b in branches}
    panel.valley(depth, names)


def _colours(cells: np.ndarray, signed: bool, limits: tuple[float, float] | None
             ) -> tuple[str, tuple[float, float]]:  # fmt: skip
    if signed:
        bound = float(max(map(abs, limits))) if limits else float(np.nanmax(np.abs(cells)))
        return SIGNED_MAP, (-bound, bound)
    return MAGNITUDE_MAP, limits or (float(np.nanmin(cells)), float(np.nanmax(cells)))


def _layer_axis(panel: Panel, layers: Sequence[str], worst: int) -> None:
    """Name every so many layers, and always the one the sentence is about."""
    every = -(-len(layers) // MAX_LABELS)
    near = set(range(worst - every // 2, worst + every // 2 + 1)) if every > 1 else set()
    rows = sorted(set(range(0, len(layers), every)) - near | {worst})
    panel.axes.set_yticks(rows, [layers[row] for row in rows])
    panel.axes.tick_params(axis="y", length=0)
    if every > 1:
        panel.axes.set_ylabel(f"every {every}th of {len(layers)} layers named, in execution order")


def _bits(value: float) -> str:
    return f"{value:g}"


def _symbol(unit: str) -> str:
    """The unit inside the brackets of an axis label: "dB" of "mean SQNR [dB]"."""
    return unit[unit.index("[") + 1 : unit.index("]")] if "[" in unit else ""
