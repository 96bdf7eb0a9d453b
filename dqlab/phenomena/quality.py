"""Worse, or only different: paired distance against a distance between sets."""

import itertools

import pandas as pd
from torch import Tensor

from dqlab.metrics import frechet_distance, paired_error


def quality(
    reference: Tensor, images: dict[tuple[int, int], Tensor], real: Tensor,
    features: dict[tuple[int, int], Tensor],
) -> pd.DataFrame:  # fmt: skip
    """How far each pair of bit-widths is from the same seeds at full precision, and from data.

    Args:
        reference: full-precision pictures `[N, 3, H, W]` in [0, 1].
        images: pictures of the same seeds by (weights, activations).
        real: features of real pictures `[M, 64]`.
        features: features of `images` `[N, 64]`, by the same keys.

    Returns:
        Columns weights, activations, mse (median of pairs), frechet, garment, colour (share of
        pairs that read the same).

    """
    rows = []
    for (weights, activations), made in images.items():
        paired = paired_error(reference, made)
        same = [1 - paired.flips[name] for name in ("garment", "colour")]
        distance = frechet_distance(real, features[weights, activations])
        rows.append((weights, activations, paired.median, distance, *same))
    names = ["weights", "activations", "mse", "frechet", "garment", "colour"]
    return pd.DataFrame(rows, columns=names)


def opposite_pairs(table: pd.DataFrame, margin: float = 0.05) -> pd.DataFrame:
    """Settings whose paired error and Frechet distance disagree about which is better.

    A pair counts only if both measures differ by more than `margin`, relative to the smaller.

    Returns:
        Columns closer (smaller paired error), lower (smaller Frechet distance), mse_ratio,
        frechet_ratio (both above 1), the largest product first.

    """
    rows = []
    for a, b in itertools.combinations(table.itertuples(index=False), 2):
        closer, other = (a, b) if a.mse < b.mse else (b, a)
        ratios = other.mse / closer.mse, closer.frechet / other.frechet
        if min(ratios) > 1 + margin:
            rows.append((_name(closer), _name(other), *ratios))
    found = pd.DataFrame(rows, columns=["closer", "lower", "mse_ratio", "frechet_ratio"])
    order = (found["mse_ratio"] * found["frechet_ratio"]).sort_values(ascending=False).index
    return found.loc[order].reset_index(drop=True)


def names(table: pd.DataFrame) -> list[str]:
    """The settings of `quality`'s rows, such as "W4A8"."""
    return [_name(row) for row in table.itertuples(index=False)]


def _name(row) -> str:
    return f"W{row.weights}A{row.activations}"
