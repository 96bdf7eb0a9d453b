"""Tables and a chart of Q-Diffusion's Stable Diffusion setting, in 1.2-bimodal-shortcuts."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from dqlab.phenomena import q_diffusion_text as measured
from dqlab.phenomena import shortcut_checks as checks
from dqlab.phenomena.calibration import per_step
from dqlab.show import charts
from dqlab.show.bundle import Page, Picture
from dqlab.show.tables import table

LOOKS = dict(
    zip(
        (measured.EVEN, *measured.WINDOWS),
        ("method", "rtn", "ablation_1", "ablation_2"),
        strict=True,
    )
)
"""The sets whose steps are drawn, and how."""


def source_page(powers: pd.DataFrame) -> Page:
    """What every calibration set is worth, from the frame `sources`."""
    rows = []
    for row in measured.source_table(powers).to_dict("records"):
        # A gain of -0.0 reads as a loss.
        gain, low, high = (round(row[name], 1) + 0.0 for name in ("gain", "low", "high"))
        told = f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]" if row["source"] != measured.EVEN else ""
        rows.append(
            (row["source"], str(row["rows"]), f"{row['db']:.1f}", f"{row['worst']:.1f}", told)
        )
    heads = ("calibrated on", "states", "SQNR [dB]", "worst step [dB]", "against even [dB]")
    return table("W8A8, min-max, nothing learned; 95 % intervals over seeds.", heads, rows)


def window_page(frames: Mapping[str, pd.DataFrame]) -> Page:
    """Windows judged by final pictures on `pixel-unet`, from `shortcut_checks`' frames."""
    rows = [
        (
            row["source"], f"{row['db']:.1f}", f"{row['worst']:.1f}", f"{row['mse']:.2e}",
            f"{row['ratio']:.1f} ×" if row["source"] != measured.EVEN else "",
        )
        for row in checks.window_table(frames).to_dict("records")
    ]  # fmt: skip
    heads = (
        "calibrated on", "SQNR [dB]", "worst step [dB]", "paired squared error, median",
        "of the even set's",
    )  # fmt: skip
    words = f"pixel-unet, W8A8, min-max, nothing learned, {checks.Plan().samples} states each."
    return table(words, heads, rows)


def source_chart(powers: pd.DataFrame) -> Picture:
    """SQNR step by step for the even set and the three windows."""
    frame = per_step(powers[powers["source"].isin(list(LOOKS))])
    means = frame.groupby("source", sort=False)["db"].mean()
    told = ", ".join(f"{name} {means[name]:.1f} dB" for name in LOOKS)
    return charts.lines(
        frame.rename(columns={"source": "series"}),
        f"SQNR at every step, by the steps that ranges were read on. Means: {told}.",
        x="step", y="db", axes=("sampling step", "SQNR of the answer [dB], W8A8"), roles=LOOKS,
        steps=True,
    )  # fmt: skip


def operand_page(powers: pd.DataFrame) -> Page:
    """What each operand of attention costs alone, from the frame `operands`."""
    wide = measured.operand_table(powers).pivot(index="operand", columns="bits", values="db")
    bits = sorted(wide.columns, reverse=True)
    rows = [
        (f"{name} ({words})", *("–" if pd.isna(v) else f"{v:.1f}" for v in wide.loc[name, bits]))
        for name, words in measured.OPERANDS.items()
    ]
    words = "SQNR [dB] with one operand of every attention quantized and nothing else."
    return table(words, ("operand", *(f"{b} bits" for b in bits)), rows)
