"""The activation bits that PTQD chooses at every step, and the two ratios that decide."""

from __future__ import annotations

import pandas as pd

from dqlab.show import charts
from dqlab.show.bundle import Picture


def step_bits(mixed: pd.DataFrame, widths: tuple[int, int] = (4, 8)) -> Picture:
    """SNR^Q at few and at many bits and SNR^F over the steps, on a logarithmic axis.

    Args:
        mixed: columns step, timestep, few, many, forward, bits.
        widths: the bits behind few and many, which the steps choose between.

    """
    few, many = widths
    names = {"few": f"{few} bits", "many": f"{many} bits", "forward": "diffusion"}
    long = mixed.melt(["step", "timestep"], list(names), "series", "ratio")
    long["series"] = long["series"].map(names)
    low = mixed[mixed["bits"] == few]["step"]
    told = f"{len(low)} of {len(mixed)} steps get {few} bits" + _where(low)
    looks = {names["few"]: "ablation_1", names["many"]: "method", "diffusion": "full_precision"}
    return charts.lines(
        long, f"{told}; the others get {many}.", x="step", y="ratio", log=True, steps=True,
        roles=looks, axes=("", "signal over noise"), width=680,
    )  # fmt: skip


def _where(steps: pd.Series) -> str:
    """Where they lie, as a clause."""
    if steps.empty:
        return ""
    whole = len(steps) == steps.max() - steps.min() + 1
    words = ("from", "to") if whole else ("all between", "and")
    return f", {words[0]} step {steps.min()} {words[1]} step {steps.max()}"
