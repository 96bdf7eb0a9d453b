"""Ranges by formula: no search.

min_max      [min x, max x] (Jacob et al., CVPR 2018, arXiv 1712.05877, section 3.1)
percentile   the (1 - q) / 2 and (1 + q) / 2 quantiles
mean_abs     s = mean |x|, the least-squares scale of one bit (XNOR-Net, arXiv 1603.05279, equation
6)
"""

from __future__ import annotations

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.formats import Format, Range
from dqlab.ranges.rows import Axis, rows_of

Bounds = tuple[Tensor, Tensor]


def min_max(
    x: Tensor,
    fmt: Format,
    axis: Axis = None,
    group_size: int | None = None,
    name: str = "tensor",
) -> Range:
    """Range that covers all of x; `dqlab.ranges.rows` explains the arguments and errors."""
    rows = rows_of(x, axis, group_size, name)
    return rows.range(fmt, *extremes(rows.values))


def percentile(
    x: Tensor,
    fmt: Format,
    q: float = 0.999,
    axis: Axis = None,
    group_size: int | None = None,
    name: str = "tensor",
) -> Range:
    """Range that leaves out a share (1 - q) / 2 of the values at either end."""
    rows = rows_of(x, axis, group_size, name)
    return rows.range(fmt, *quantiles(rows.values, q))


def mean_abs(x: Tensor, fmt: Format, axis: Axis = None, name: str = "tensor") -> Range:
    """Range with max(|low|, |high|) = mean |x|: for `Binary`, the scale of least squared error."""
    rows = rows_of(x, axis, None, name)
    alpha = rows.values.abs().mean(1)
    return rows.range(fmt, -alpha, alpha)


def extremes(values: Tensor) -> Bounds:
    """Lowest and highest of each row: [K, M] -> [K], [K]."""
    low, high = values.aminmax(dim=1)
    return low, high


def quantiles(values: Tensor, q: float) -> Bounds:
    """Two quantiles of each row: [K, M] -> [K], [K]; InvalidInputError unless 0 < q <= 1."""
    if not 0 < q <= 1:
        raise InvalidInputError(f"percentile share q must be in (0, 1], got {q}")
    return _quantile(values, (1 - q) / 2), _quantile(values, (1 + q) / 2)


def _quantile(values: Tensor, share: float) -> Tensor:
    # torch.quantile refuses rows of more than 2^24 values; two order statistics need no such limit
    place = share * (values.shape[1] - 1)
    below = min(int(place), values.shape[1] - 2) if values.shape[1] > 1 else 0
    above = min(below + 1, values.shape[1] - 1)
    first = values.kthvalue(below + 1, dim=1).values
    second = values.kthvalue(above + 1, dim=1).values
    return torch.lerp(first, second, place - below)
