"""Pictures of ranges over the sampler steps: drift, the parts of an error, s(t) of one site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dqlab.phenomena import timed_ranges as tr
from dqlab.phenomena.timed_ranges import Timed
from dqlab.show import charts
from dqlab.show.bundle import Picture, number, percent
from dqlab.show.panel import Canvas
from dqlab.show.roles import role, style

NAMES = {
    "rtn": "plain rounding", "min-max": "one scale, min-max", "static": "one scale, the best",
    "table": "every step's own best", "network": "TDQ", "run time": "at run time, per picture",
    "run time, token": "at run time, per token", "trained, static": "trained, LSQ",
    "trained, network": "trained, TDQ",
}  # fmt: skip


def errors_of(seen: Timed, site: str, static: str = "static") -> Picture:
    """Clipping and rounding at each step under one step size for all."""
    one = seen.of([site])
    parts = tr.clip_and_round(one, tr.step_sizes(one, static))
    long = parts.melt(["step", "timestep"], ["clipping", "rounding"], "series", "error")
    ends = parts.loc[[parts["clipping"].idxmax(), parts["rounding"].idxmax()]]
    words = (
        f"{tr.name_of(site)}, 4 bits, {NAMES[static]}: clipping peaks at step "
        f"{ends['step'].iloc[0]}, rounding at step {ends['step'].iloc[1]}: both ends lose."
        if ends["step"].iloc[0] != ends["step"].iloc[1]
        else f"{tr.name_of(site)}, 4 bits, {NAMES[static]}: clipping and rounding peak together, "
        f"at step {ends['step'].iloc[0]}."
    )
    return charts.lines(
        long, words, x="step", y="error", steps=True, marks=True,
        axes=("", "share of the step's power"),
        roles={"clipping": "rtn", "rounding": "ablation_1"},
    )  # fmt: skip


@style()
def drift_points(tables: Mapping[str, pd.DataFrame]) -> Picture:
    """R against the correlation with time, site by site, for one or two models."""
    told = "; ".join(
        f"{name}: {100 * (t['R'] > 1.5).mean():.0f} % of {len(t)} sites have R > 1.5"
        for name, t in tables.items()
    )
    canvas = Canvas(720, 360)
    panel = canvas.panels[0]
    for (name, found), look in zip(tables.items(), ("method", "ablation_1"), strict=False):
        panel.dots(found["r"].tolist(), found["R"].tolist(), role(look), name)
        far = found.loc[found["R"].idxmax()]
        side = "left" if far["r"] < 0 else "right"
        panel.text(float(far["r"]), float(far["R"]) * 1.03, f"{name}: {far['layer']}", plate=True,
                   ha=side, va="bottom")  # fmt: skip
    panel.axes.set(xlabel="correlation r of range and t", ylabel="drift R, max / min range")
    panel.axes.set(
        xlim=(-1.05, 1.05), ylim=(0.9, 1.2 * max(t["R"].max() for t in tables.values()))
    )
    panel.axes.grid()
    return charts.light(canvas.picture(f"Drift and time. {told}."))


@style()
def scales_of_site(seen: Timed, site: str, network: Tensor, at: Sequence[float]) -> Picture:
    """S(t) of the network at and between the sampler's timesteps, each step's best, one for all.

    `network` holds its scales at the timesteps `at`, ascending, the sampler's among them.
    """
    one = seen.of([site])
    best, static = (tr.step_sizes(one, k)[0] for k in ("table", "static"))
    on, between = _misfit(one.t, best, network, torch.tensor(list(at)))
    words = (
        f"{tr.name_of(site)}, 4 bits: s(t) is within {percent(on)} of each step's best on "
        f"average, and {percent(between)} off the line through them in between; the best scale "
        f"moves by a factor {number(best.max() / best.min(), 3)}."
    )
    canvas = Canvas(720, 350)
    panel = canvas.panels[0]
    t = one.t.tolist()
    low, high = _reach(one.t, network, torch.tensor(list(at)))
    panel.ribbon(t, low.tolist(), high.tolist(), role("method"))
    mine = [float(network[list(at).index(k)]) for k in t]
    panel.line(t, mine, role("method"), "TDQ; faint: in between")
    panel.line(t, best.tolist(), role("full_precision"), "own best", marks=False)
    panel.line(t, static.tolist(), role("rtn"), "one for all", marks=False)
    panel.axes.set(xlim=(max(at), min(at)), xlabel="t (noise → image)", ylabel="scale s")
    panel.axes.grid(axis="y")
    return charts.light(canvas.picture(words))


def _reach(t: Tensor, network: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest scale around each of the sampler's timesteps, half way to the next."""
    half = float((t[:-1] - t[1:]).abs().max()) / 2
    near = [network[(at - k).abs() <= half] for k in t]
    return torch.stack([x.min() for x in near]), torch.stack([x.max() for x in near])


def _misfit(t: Tensor, best: Tensor, network: Tensor, at: Tensor) -> tuple[float, float]:
    """Mean relative distance at the sampler's timesteps, and from the line through them."""
    order = t.argsort()
    line = torch.tensor(np.interp(at, t[order], best[order]))
    off = (network / line - 1).abs()
    on = torch.isin(at, t)
    inside = (at > t.min()) & (at < t.max()) & ~on
    return float(off[on].mean()), float(off[inside].mean()) if inside.any() else 0.0
