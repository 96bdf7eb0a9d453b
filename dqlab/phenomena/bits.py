"""Plain rounding at many bit-widths: noise SQNR per step, and the pictures that come out.

Quantizing once per weight bit-width and reading all activation ranges there gives every
activation bit-width without another calibration: `with_bits` sets formats and ranges exactly as
`quantize(pipe, "rtn", weights, activations)` does.
"""

import copy

import pandas as pd
from torch import tensor

from dqlab.layers import quantizers
from dqlab.layers.policy import policy_from_dict
from dqlab.methods import describe
from dqlab.metrics import sqnr_per_step, to_db
from dqlab.models.families import family_of


def with_bits(pipe, activations: int | None, ranges: pd.DataFrame):
    """A copy of a quantized pipeline with other activation bits.

    Args:
        pipe: quantized; its weights and policy stay.
        activations: bits, or None for full precision.
        ranges: columns low, high, indexed by site (`dqlab.phenomena.drift.static_ranges`).

    """
    result = copy.copy(pipe)
    component = family_of(pipe).component
    model = copy.deepcopy(getattr(pipe, component))
    result.register_modules(**{component: model, "scheduler": copy.deepcopy(pipe.scheduler)})
    policy, weights = policy_from_dict(describe(pipe)["policy"]), describe(pipe)["weights"]
    for site, quantizer in quantizers(model).items():
        if site.endswith(".weight"):
            continue
        quantizer.format = policy.format(site, weights, activations)
        if quantizer.format is not None:
            set_bounds(quantizer, ranges.loc[site])
    return result


def set_bounds(quantizer, bounds: pd.Series) -> None:
    """Give a quantizer with a format the range [bounds.low, bounds.high]."""
    low, high = (tensor(float(bounds[name])) for name in ("low", "high"))
    quantizer.set_range(quantizer.format.params(low, high))


def mean_db(powers: pd.DataFrame) -> pd.DataFrame:
    """Mean over steps of the SQNR for each pair of bit-widths: columns weights, activations, db.

    `powers`: columns weights, activations, step, t, seed, signal, noise.
    """
    pairs = powers.groupby(["weights", "activations"], sort=False)
    rows = [(*pair, float(sqnr_per_step(part)["sqnr_db"].mean())) for pair, part in pairs]
    return pd.DataFrame(rows, columns=["weights", "activations", "db"])


def db_of(table: pd.DataFrame, weights: int, activations: int) -> float:
    """One cell of `mean_db`'s frame, dB."""
    chosen = table.query("weights == @weights and activations == @activations")
    return float(chosen["db"].iloc[0])


def per_seed(powers: pd.DataFrame, pairs: list[tuple[int, int]]) -> pd.DataFrame:
    """SQNR per step and seed for some pairs: columns series, step, timestep, seed, db."""
    parts = [
        powers.query("weights == @w and activations == @a").assign(series=f"W{w}A{a}")
        for w, a in pairs
    ]
    found = pd.concat(parts)
    found["timestep"] = found["t"].astype(int)
    found["db"] = to_db(found["signal"].tolist(), found["noise"].tolist())
    return found[["series", "step", "timestep", "seed", "db"]]
