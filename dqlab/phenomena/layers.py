"""Which layers hurt: quantize the input of one layer at a time and read the noise SQNR."""

from collections.abc import Iterable

import pandas as pd

from dqlab.formats import Affine
from dqlab.layers import quantizers
from dqlab.metrics import error_powers, sqnr_per_step
from dqlab.models.families import family_of
from dqlab.phenomena.bits import set_bounds
from dqlab.trajectory import States


def sensitivity(
    pipe, states: States, ranges: pd.DataFrame, layers: Iterable[str], bits: int = 4
) -> pd.DataFrame:
    """SQNR of the noise prediction per step with the inputs of `layers` rounded, the rest exact.

    Args:
        pipe: a watchable pipeline (`dqlab.phenomena.drift.watchable`).
        states: full-precision trajectories.
        ranges: columns low, high, indexed by site.
        layers: rounded together.
        bits: of the rounded inputs.

    Returns:
        Columns step, timestep, db.

    """
    model = family_of(pipe).denoiser(pipe)
    chosen = [quantizers(model)[f"{layer}.input"] for layer in layers]
    try:
        for quantizer in chosen:
            quantizer.format = Affine(bits)
            set_bounds(quantizer, ranges.loc[quantizer.site])
        found = sqnr_per_step(error_powers(states, model))
    finally:
        for quantizer in chosen:
            quantizer.format = None
    return found.rename(columns={"t": "timestep", "sqnr_db": "db"})


def one_at_a_time(
    pipe, states: States, ranges: pd.DataFrame, table: pd.DataFrame, bits: int = 4
) -> pd.DataFrame:
    """`sensitivity` of every layer in `table` (columns layer, branch) alone.

    Returns:
        Columns layer, branch, step, timestep, db, layers in the table's order.

    """
    parts = [
        sensitivity(pipe, states, ranges, [layer], bits).assign(layer=layer, branch=branch)
        for layer, branch in table.itertuples(index=False)
    ]
    return pd.concat(parts, ignore_index=True)[["layer", "branch", "step", "timestep", "db"]]


def ends_against_middle(
    pipe, states: States, ranges: pd.DataFrame, layers: list[str], ends: list[str], bits: int = 4
) -> dict[str, float]:
    """Mean SQNR in dB with only the `ends` rounded, and with all but them."""
    rest = [layer for layer in layers if layer not in ends]
    groups = {"ends": ends, "others": rest}
    return {
        name: float(sensitivity(pipe, states, ranges, group, bits)["db"].mean())
        for name, group in groups.items()
    }
