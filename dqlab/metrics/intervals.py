"""95 % intervals of what is measured on a handful of pictures."""

import math

import torch
from torch import Tensor

LEVEL = 0.95
DRAWS = 500
_Z = 1.959964  # 97.5 % quantile of the normal distribution, for `LEVEL`


def median(values: Tensor) -> Tensor:
    """Median along the last dimension; of an even number, the mean of the middle two.

    `torch.median` gives the lower of the two, which reads too low.
    """
    ordered, count = values.sort(-1).values, values.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2


def bootstrap_median(values: Tensor, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """Percentile-bootstrap interval of the median of `values` `[N]`."""
    return _ends(median(values[_picks(len(values), draws, seed)]))


def bootstrap_ratio(
    ours: Tensor, theirs: Tensor, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Interval of median(ours) / median(theirs), both `[N]`, pair i belonging to one seed."""
    picks = _picks(len(ours), draws, seed)
    top, bottom = (median(x[picks]) for x in (ours.double(), theirs.double()))
    # Two exact copies are alike; something against an exact copy is infinitely worse.
    return _ends(torch.where(top == bottom, 1.0, top / bottom))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of a share seen in `count` cases (Wilson 1927)."""
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    centre, scale = share + _Z**2 / (2 * count), 1 + _Z**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _picks(count: int, draws: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(count, (draws, count), generator=generator)


def _ends(drawn: Tensor) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=drawn.dtype)
    finite = bool(drawn.isfinite().all())  # between infinities nothing can be interpolated
    low, high = drawn.quantile(ends, interpolation="linear" if finite else "nearest").tolist()
    return low, high
