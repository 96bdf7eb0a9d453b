"""The ledger that opens and closes a category: same seeds, one row per method.

Also gains between two settings with an interval over seeds, and what a paper's claim came to.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from dqlab.methods.corrected import prediction_correction
from dqlab.metrics import (
    bootstrap_gain_db,
    bootstrap_mean_sqnr_db,
    cost,
    error_powers,
    mean_sqnr_db,
    paired_error,
)
from dqlab.models.families import family_of
from dqlab.trajectory import States

OUTCOMES = ("reproduces", "weaker here", "does not reproduce here")


def ledger_row(
    powers: pd.DataFrame, reference: Tensor, made: Tensor, quantized, states: States
) -> dict[str, float]:
    """One method's row: noise SQNR, final pictures, computed cost.

    Args:
        powers: its `error_powers`.
        reference: full-precision pictures `[N, 3, H, W]` in [0, 1].
        made: its pictures from the same seeds.
        quantized: the pipeline.
        states: full-precision states; the cost of one network call is counted on the first.

    Returns:
        db, db_low, db_high (95 % bootstrap over seeds); mse (median of pairs), mse_low, mse_high;
        garment, colour, background (share of pairs that read the same); kilobytes; gigabitops.

    """
    low, high = bootstrap_mean_sqnr_db(powers)
    paired = paired_error(reference, made)
    mse_low, mse_high = paired.interval()
    spent = cost(family_of(quantized).denoiser(quantized), states)
    return {
        "db": mean_sqnr_db(powers), "db_low": low, "db_high": high,
        "mse": paired.median, "mse_low": mse_low, "mse_high": mse_high,
        **{head: 1 - flips for head, flips in paired.flips.items()},
        "kilobytes": spent.bytes / 1e3, "gigabitops": spent.bit_ops / 1e9,
    }  # fmt: skip


def powers_of(quantized, states: States) -> pd.DataFrame:
    """`error_powers` of a quantized pipeline, its correction of predictions included."""
    model = family_of(quantized).denoiser(quantized)
    return error_powers(states, model, correct=prediction_correction(quantized))


def db_by_setting(powers: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean SQNR over steps for each setting, with its interval: columns `by`, db, low, high."""
    rows = []
    for key, part in powers.groupby(by, sort=False):
        rows.append((*key, mean_sqnr_db(part), *bootstrap_mean_sqnr_db(part)))
    return pd.DataFrame(rows, columns=[*by, "db", "low", "high"])


def gain_db(
    before: pd.DataFrame, after: pd.DataFrame, draws: int = 500, seed: int = 0
) -> tuple[float, float, float]:
    """Gain in mean SQNR and its 95 % interval, both settings resampled over the same seeds.

    Args:
        before: `error_powers` of one setting.
        after: of the other, on the same steps and seeds.
        draws: bootstrap resamples.
        seed: of the resampling.

    Raises:
        InvalidInputError: if the two were measured on other seeds or steps.

    """
    low, high = bootstrap_gain_db(after, before, draws=draws, seed=seed)
    return mean_sqnr_db(after) - mean_sqnr_db(before), low, high


@dataclass(frozen=True)
class Claim:
    """A paper's claim beside what was measured here.

    Attributes:
        says: the claim, in words.
        quoted: the paper's own figure, in words; empty if it gives none.
        measured, low, high: our number and its interval; both ends equal the number where there
            is no interval.
        unit: of the number.
        full: from here on the claim counts as reproduced.
        least: an interval that does not lie above this shows no effect.

    """

    says: str
    quoted: str
    measured: float
    low: float
    high: float
    unit: str
    full: float
    least: float = 0.0

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`, by these margins."""
        if self.low <= self.least:
            return OUTCOMES[2]
        return OUTCOMES[0] if self.measured >= self.full else OUTCOMES[1]

    def row(self) -> tuple[str, ...]:
        """For a table: claim, quoted, measured here, margin, outcome."""
        number = f"{self.measured:.2f} {self.unit}".rstrip()
        if self.low != self.high:
            number += f" [{self.low:.2f}, {self.high:.2f}]"
        return self.says, self.quoted, number, f"{self.full:g} {self.unit}".rstrip(), self.outcome


def claims_frame(claims: Mapping[str, Claim]) -> pd.DataFrame:
    """Claims as rows that can be stored: columns name, measured, low, high, outcome."""
    rows = [(name, c.measured, c.low, c.high, c.outcome) for name, c in claims.items()]
    return pd.DataFrame(rows, columns=["name", "measured", "low", "high", "outcome"])
