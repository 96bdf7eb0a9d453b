"""Kullback-Leibler error of a range, on histograms.

(Migacz, "8-bit inference with TensorRT", GPU Technology Conference 2017.)

P is the histogram of a row over [min, max]. A range sends each bin, by its centre, to the nearest
level; Q spreads the mass of each level evenly over those of its bins that hold data. The error is

    KL(P || Q) = sum_i P_i log(P_i / Q_i) = sum_i P_i log P_i - sum_levels m log(m / c)

with m the mass and c the number of occupied bins of a level. It needs no smoothing: Q_i > 0
wherever P_i > 0. Clipping lumps the tails together and costs; a wide range lumps the middle
together and costs too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dqlab.formats import Format, Range

BINS = 2048


def divergence_from(rows: Tensor, fmt: Format) -> Callable[[Range], Tensor]:
    """The error as a function of the range: rows [K, M] -> (range [K, 1] -> [K])."""
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    width = ((high - low) / BINS).clamp(min=torch.finfo(rows.dtype).tiny)
    shares = histograms((rows - low) / width, BINS)
    negative_entropy = torch.xlogy(shares, shares).sum(1)
    mass, occupied = _running_sums(shares), _running_sums((shares > 0).to(shares.dtype))

    def divergence(r: Range) -> Tensor:
        levels = fmt.levels(r).squeeze(1)
        edges = ((levels[:, 1:] + levels[:, :-1]) / 2 - low) / width
        # a bin whose centre i + 1/2 lies above the edge belongs to the level above
        first = (edges - 0.5).ceil_().clamp_(0, BINS).long()
        m, c = _between(mass, first), _between(occupied, first)
        return negative_entropy - torch.xlogy(m, m / c.clamp(min=1)).sum(1)

    return divergence


def histograms(places: Tensor, bins: int) -> Tensor:
    """Share of each row's `places` [K, M], in units of bins, that falls in each of [0, bins)."""
    index = places.clamp(0, bins - 1).long()
    one = torch.full_like(places, 1 / places.shape[1])
    return places.new_zeros(len(places), bins).scatter_add_(1, index, one)


def _running_sums(x: Tensor) -> Tensor:
    """Sums of the first 0..B entries, [K, B] -> [K, B + 1]; float64, for exact differences."""
    return torch.nn.functional.pad(x.double().cumsum(1), (1, 0))


def _between(sums: Tensor, first: Tensor) -> Tensor:
    """Sums of the stretches that start at 0 and at each of `first` [K, L - 1] -> [K, L]."""
    inner = sums.gather(1, first)
    return torch.cat([inner, sums[:, -1:]], 1).diff(dim=1, prepend=sums[:, :1])
