"""Curves over sampling time: dB per step, ranges as ribbons, image error.

Time runs left to right from noise to image. Frames are tidy: one row per series, step and seed.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from dqlab.errors import InvalidInputError
from dqlab.show.bundle import Picture, number, percent
from dqlab.show.frames import require, timeline
from dqlab.show.panel import Canvas, Panel
from dqlab.show.roles import ROLES, assign_roles, label_of, style

SPREADS = ("iqr", "interval", "given", "none")


def summarise(frame: pd.DataFrame, column: str, spread: str = "iqr") -> pd.DataFrame:
    """Per series and step: centre, low and high of `column` over seeds.

    "iqr": median and quartiles. "interval": mean and a 95 % normal interval of the mean
    (1.96 standard errors). "given": one row per step, with its own columns low and
    high. "none": mean alone.
    """
    if spread not in SPREADS:
        raise InvalidInputError(f"spread={spread!r} is unknown: use one of {', '.join(SPREADS)}.")
    if spread == "given":
        table = frame[["series", "step", "timestep", column, "low", "high"]]
        return table.rename(columns={column: "centre"}).sort_values("step", kind="stable")
    groups = frame.groupby(["series", "step", "timestep"], sort=False)[column]
    if spread == "iqr":
        parts = {"centre": 0.5, "low": 0.25, "high": 0.75}
        table = pd.DataFrame({name: groups.quantile(q) for name, q in parts.items()})
    else:
        half = 1.96 * groups.sem().fillna(0.0) if spread == "interval" else 0.0
        centre = groups.mean()
        table = pd.DataFrame({"centre": centre, "low": centre - half, "high": centre + half})
    return table.reset_index().sort_values("step", kind="stable")


def db_over_steps(frame: pd.DataFrame, *, roles: dict[str, str] | None = None,
                  column: str = "db", unit: str = "SQNR of predicted noise [dB], up is better",
                  spread: str = "iqr", limits: tuple[float, float] | None = None,
                  condition: str = "", width: int = 760,
                  height: int = 400) -> Picture:  # fmt: skip
    """Decibels per sampling step, one line per series.

    `frame`: columns series, step, timestep, `column` [dB], optionally one row per seed. The title
    compares the first series (in role order, full precision aside) with the second, or
    names the worst step of a single one. `condition` ("W4A4, 8 seeds") ends the axis label.
    `limits` fixes the y axis, so that figures to be compared can share it.
    """
    table = summarise(require(frame, ("series", "step", "timestep", column), "db_over_steps"),
                      column, spread)  # fmt: skip
    sentence, facts = db_sentence(table, roles)
    return _curves(table, frame, roles, sentence, facts, spread, limits, (width, height),
                   _with(unit, condition), "linear")  # fmt: skip


def error_curves(frame: pd.DataFrame, *, roles: dict[str, str] | None = None,
                 column: str = "error", unit: str = "mean squared image error, down is better",
                 spread: str = "iqr", limits: tuple[float, float] | None = None,
                 condition: str = "", width: int = 760, height: int = 400) -> Picture:  # fmt: skip
    """Image error (or any positive magnitude) per step on a log axis; see `db_over_steps`."""
    require(frame, ("series", "step", "timestep", column), "error_curves")
    if (frame[column] <= 0).any():
        raise InvalidInputError(
            f"error_curves draws {column!r} on a log axis, so all of it must be above zero: leave "
            f"out the rows that are not (a step before any error, say)."
        )
    table = summarise(frame, column, spread)
    sentence, facts = error_sentence(table, roles)
    return _curves(table, frame, roles, sentence, facts, spread, limits, (width, height),
                   _with(unit, condition), "log")  # fmt: skip


@style()
def _curves(table: pd.DataFrame, frame: pd.DataFrame, roles: dict[str, str] | None,
            sentence: str, facts: dict[str, Any], spread: str,
            limits: tuple[float, float] | None, size: tuple[int, int], unit: str,
            scale: str) -> Picture:  # fmt: skip
    canvas = Canvas(*size)
    panel = canvas.panels[0]
    if scale == "log":
        panel.log_scale()
    for label, look in assign_roles(list(table["series"].unique()), roles).items():
        part = table[table["series"] == label]
        x, y, low, high = (part[c].to_numpy() for c in ("step", "centre", "low", "high"))
        if spread == "iqr" and (high > low).any():
            panel.ribbon(x, low, high, look)
        if spread in ("interval", "given") and (high > low).any():
            panel.error_bars(x, y, low, high, look)
        panel.line(x, y, look, label_of(label))
    panel.time_axis(*timeline(frame))
    panel.axes.set_ylabel(unit)
    panel.axes.grid(axis="y")
    if limits:
        panel.axes.set_ylim(*limits)
    return canvas.picture(sentence, facts)


def db_sentence(table: pd.DataFrame, roles: dict[str, str] | None = None) -> tuple[str, dict]:
    """The finding of a dB figure and its numbers, from `summarise`'s table."""
    wide = table.pivot(index="step", columns="series", values="centre")
    times = dict(zip(table["step"], table["timestep"], strict=True))
    lead, *rest = _by_interest(list(wide), roles)
    worst = wide[lead].idxmin()
    if not rest:
        gap = wide[lead].max() - wide[lead].min()
        facts = {"series": lead, "step": int(worst), "worst": wide[lead][worst], "gap": gap}
        where = f"step {worst} (t = {times[worst]})"
        return (
            f"{_start(lead)} is worst at {where}: {number(wide[lead][worst], 3)} dB, "
            f"{number(gap, 3)} dB below its best step."
        ), facts
    gain = wide[lead] - wide[rest[0]]
    at = gain.abs().idxmax()
    facts = {"series": lead, "against": rest[0], "mean_gain": gain.mean(), "step": int(at),
             "gain_there": gain[at]}  # fmt: skip
    verb = "gains" if gain.mean() > 0 else "loses"
    return (
        f"{_start(lead)} {verb} {number(abs(gain.mean()), 2)} dB on {label_of(rest[0])} averaged "
        f"over the steps; the largest difference is {gain[at]:+.1f} dB at step {at} "
        f"(t = {times[at]})."
    ), facts


def error_sentence(table: pd.DataFrame, roles: dict[str, str] | None = None) -> tuple[str, dict]:
    """The finding of an error figure and its numbers, from `summarise`'s table."""
    wide = table.pivot(index="step", columns="series", values="centre")
    lead, *rest = _by_interest(list(wide), roles)
    last = wide.index[-1]
    end = wide[lead][last]
    if not rest:
        half = int((wide[lead] >= end / 2).idxmax())
        facts = {"series": lead, "end": end, "half": half}
        return (
            f"{_start(lead)} ends with an error of {number(end)}; half of it is there by "
            f"step {half} of {last}."
        ), facts
    ratio = end / wide[rest[0]][last]
    facts = {"series": lead, "against": rest[0], "ratio": ratio, "end": end}
    other = label_of(rest[0])
    if ratio < 1:
        claim = f"{number(1 / ratio)} times below {other}"
    else:
        claim = f"{number(ratio)} times {other}, no gain"
    return f"{_start(lead)} ends with an error of {number(end)}: {claim}.", facts


@style()
def range_ribbon(frame: pd.DataFrame, static: tuple[float, float] | None = None, *,
                 unit: str = "activation value", label: str = "range per step",
                 width: int = 760, height: int = 380) -> Picture:  # fmt: skip
    """The range of a tensor at each step as a ribbon, and a static range as a band behind it.

    `frame`: columns step, timestep, low, high; with a column `clipped` (share of values outside
    the static range, in [0, 1]) the title says what that range clips, else how badly it fits.
    """
    table = require(frame, ("step", "timestep", "low", "high"), "range_ribbon").sort_values("step")
    canvas = Canvas(width, height)
    panel = canvas.panels[0]
    panel.time_axis(*timeline(table))
    if static is not None:
        panel.band(*static, ROLES["rtn"], "static range")
    _ribbon(panel, table, label)
    panel.axes.set_ylabel(unit)
    return canvas.picture(*range_sentence(table, static))


def _ribbon(panel: Panel, table: pd.DataFrame, label: str) -> None:
    look, x = ROLES["method"], table["step"].to_numpy()
    panel.ribbon(x, table["low"].to_numpy(), table["high"].to_numpy(), look)
    panel.line(x, table["high"].to_numpy(), look, label)
    panel.line(x, table["low"].to_numpy(), look, "")


def range_sentence(table: pd.DataFrame, static: tuple[float, float] | None) -> tuple[str, dict]:
    """The finding of a range figure: what the static range clips, cuts, or wastes."""
    table = table.set_index("step")
    span = table["high"] - table["low"]
    ratio = float(span.max() / max(span.min(), 1e-12))
    if static is None:
        wide, narrow = span.idxmax(), span.idxmin()
        return (
            f"The range is {number(ratio)} times wider at step {wide} than at step {narrow}."
        ), {"ratio": ratio, "widest": int(wide), "narrowest": int(narrow)}
    if "clipped" in table:
        at = table["clipped"].idxmax()
        share = float(table["clipped"][at])
        return (
            f"A static range clips {percent(share)} of the values at step {at} "
            f"(t = {table['timestep'][at]})."
        ), {"clipped": share, "step": int(at)}
    return _fit_sentence(table, span, static)


def _fit_sentence(table: pd.DataFrame, span: pd.Series, static: tuple) -> tuple[str, dict]:
    inside = (table["high"].clip(*static) - table["low"].clip(*static)).clip(lower=0)
    cut, unused = 1 - inside / span, 1 - inside / (static[1] - static[0])
    at, idle = cut.idxmax(), unused.idxmax()
    facts = {"cut": float(cut[at]), "step": int(at), "unused": float(unused[idle])}
    return (
        f"A static range cuts off {percent(cut[at])} of the range at step {at} and leaves "
        f"{percent(unused[idle])} of itself unused at step {idle}."
    ), facts


def _by_interest(labels: list[str], roles: dict[str, str] | None) -> list[str]:
    """Series in the order a title speaks of them: the method, then rounding, then the rest."""
    look = assign_roles(labels, roles)
    order = ["method", "rtn", "ablation_1", "ablation_2", "full_precision", "quoted"]
    return sorted(labels, key=lambda label: order.index(look[label].name))


def _start(label: str) -> str:
    words = label_of(label)
    return words[:1].upper() + words[1:]


def _with(unit: str, condition: str) -> str:
    return f"{unit}\n{condition}" if condition else unit
