"""The activation bits that PTQD chooses at every step, and the two ratios that decide."""

from __future__ import annotations

import pandas as pd

from dqlab.show import charts
from dqlab.show.bundle import Picture


def step_bits(mixed: pd.DataFrame) -> Picture:
    """SNR^Q at few and at many bits and SNR^F over the steps, on a logarithmic axis.

    `mixed`: columns step, timestep, few, many, forward, bits.
    """
    few, many = sorted({4, 8, *mixed["bits"]})[0], max(8, mixed["bits"].max())
    names = {"few": f"{few} bits", "many": f"{many} bits", "forward": "diffusion"}
    long = mixed.melt(["step", "timestep"], list(names), "series", "ratio")
    long["series"] = long["series"].map(names)
    low = mixed[mixed["bits"] == few]["step"]
    told = f"{len(low)} of {len(mixed)} steps get {few} bits" + (
        f", from step {low.min()} to step {low.max()}" if len(low) else ""
    )
    looks = {names["few"]: "ablation_1", names["many"]: "method", "diffusion": "full_precision"}
    return charts.lines(
        long, f"{told}; the others get {many}.", x="step", y="ratio", log=True, steps=True,
        roles=looks, axes=("", "signal over noise"), width=680,
    )  # fmt: skip
