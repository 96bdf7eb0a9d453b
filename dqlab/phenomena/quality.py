"""Worse, or only different: paired distance against a distance between sets."""

import itertools

import pandas as pd
import torch
from torch import Tensor

from dqlab.metrics import frechet_distance, paired_error


def quality(
    reference: Tensor, images: dict[tuple[int, int], Tensor], real: Tensor,
    features: dict[tuple[int, int], Tensor], draws: int = 40,
) -> pd.DataFrame:  # fmt: skip
    """How far each pair of bit-widths is from the same seeds at full precision, and from data.

    Args:
        reference: full-precision pictures `[N, 3, H, W]` in [0, 1].
        images: pictures of the same seeds by (weights, activations).
        real: features of real pictures `[M, 64]`.
        features: features of `images` `[N, 64]`, by the same keys.
        draws: bootstrap resamples behind the interval of the Frechet distance.

    Returns:
        Columns weights, activations, mse (median of pairs), mse_low, mse_high (95 % bootstrap),
        frechet, frechet_low, frechet_high (plus and minus two bootstrap deviations), garment,
        colour (share of pairs that read the same).

    """
    rows = []
    for (weights, activations), made in images.items():
        paired = paired_error(reference, made)
        low, high = paired.interval()
        mine = features[weights, activations]
        distance, spread = frechet_distance(real, mine), 2 * frechet_deviation(real, mine, draws)
        rows.append(
            {
                "weights": weights, "activations": activations,
                "mse": paired.median, "mse_low": low, "mse_high": high, "frechet": distance,
                "frechet_low": distance - spread, "frechet_high": distance + spread,
                "garment": 1 - paired.flips["garment"], "colour": 1 - paired.flips["colour"],
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def frechet_deviation(real: Tensor, features: Tensor, draws: int, seed: int = 0) -> float:
    """Standard deviation of the Frechet distance over bootstrap resamples of `features`.

    Resamples repeat pictures, which biases every distance upwards by about the same amount; the
    deviation does not see that.
    """
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(features), (draws, len(features)), generator=generator)
    return float(torch.tensor([frechet_distance(real, features[p]) for p in picks]).std())


def paired(judged: pd.DataFrame, weights: int, activations: int) -> pd.Series:
    """One setting's row of `quality`'s frame."""
    chosen = judged.query("weights == @weights and activations == @activations")
    return chosen.iloc[0]


def opposite_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """Settings whose paired error and Frechet distance disagree about which is better.

    A pair counts only if its intervals overlap in neither measure.

    Returns:
        Columns closer (smaller paired error), lower (smaller Frechet distance), mse_ratio,
        frechet_ratio (both above 1), the largest product first.

    """
    rows = []
    for a, b in itertools.combinations(table.itertuples(index=False), 2):
        closer, other = (a, b) if a.mse < b.mse else (b, a)
        apart = closer.mse_high < other.mse_low and other.frechet_high < closer.frechet_low
        if apart:
            ratios = other.mse / closer.mse, closer.frechet / other.frechet
            rows.append((_name(closer), _name(other), *ratios))
    found = pd.DataFrame(rows, columns=["closer", "lower", "mse_ratio", "frechet_ratio"])
    order = (found["mse_ratio"] * found["frechet_ratio"]).sort_values(ascending=False).index
    return found.loc[order].reset_index(drop=True)


def names(table: pd.DataFrame) -> list[str]:
    """The settings of `quality`'s rows, such as "W4A8"."""
    return [_name(row) for row in table.itertuples(index=False)]


def _name(row) -> str:
    return f"W{row.weights}A{row.activations}"
