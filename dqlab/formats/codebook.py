"""Any finite set of levels v_1 < ... < v_L, times a scale: xhat = s argmin_v |x / s - v|.

A tie goes to the level nearer to zero. Used for non-uniform grids, and for the grids of 2^b + 1
levels of BitsFusion (Sui et al. 2024, arXiv 2406.04333), for example Codebook((-1, 0, 1)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.formats.base import Format, Range, one_scale


@dataclass(frozen=True)
class Codebook(Format):
    """Levels at scale 1, stored in ascending order; code i is the i-th of them."""

    values: tuple[float, ...]
    kind: ClassVar[str] = "codebook"

    def __post_init__(self) -> None:
        values = tuple(sorted(float(v) for v in self.values))
        exact = torch.tensor(values, dtype=torch.float32)
        if len(values) < 2 or not exact.isfinite().all() or len(exact.unique()) < len(values):
            raise InvalidInputError(
                f"a codebook needs at least 2 finite values that differ in float32, got {values}"
            )
        object.__setattr__(self, "values", values)

    @property
    def bits(self) -> float:
        """log2 of the number of levels; not an integer unless that is a power of two."""
        return math.log2(len(self.values))

    @property
    def name(self) -> str:
        """Such as codebook(-1.0,0.0,1.0), which `parse` reads."""
        return f"codebook({','.join(map(repr, self.values))})"

    def params(self, low: Tensor, high: Tensor) -> Range:
        """S = max(|low|, |high|) / max |v|, z = 0."""
        return one_scale(low, high, max(map(abs, self.values)))

    def encode(self, x: Tensor, r: Range) -> Tensor:
        """Index of the nearest level, int32."""
        return self._nearest(x.to(r.scale.dtype).div(r.scale)).to(torch.int32)

    def decode(self, codes: Tensor, r: Range) -> Tensor:
        """S v[code]."""
        return self._table(r.scale)[codes.long()].mul_(r.scale)

    def levels(self, r: Range) -> Tensor:
        """S v, ascending, in a new last dimension."""
        return self._table(r.scale) * r.scale.unsqueeze(-1)

    def _table(self, like: Tensor) -> Tensor:
        return _tables(self.values)[0].to(like)

    def _nearest(self, u: Tensor) -> Tensor:
        return torch.bucketize(u.float().contiguous(), _tables(self.values)[1].to(u.device))

    def _bounds(self, zero_point: Tensor) -> tuple[float, float]:
        return self.values[0], self.values[-1]

    def _snap(self, u: Tensor, zero_point: Tensor) -> Tensor:
        nan, level = u.isnan(), self._table(u)[self._nearest(u)]
        return u.copy_(level).masked_fill_(nan, torch.nan)  # in u, for its memory format


@lru_cache
def _tables(values: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Levels, and the largest value that still goes to each level but the last."""
    levels = torch.tensor(values, dtype=torch.float32)
    middle = (levels[:-1] + levels[1:]) / 2
    below = torch.nextafter(middle, torch.tensor(-torch.inf))
    return levels, torch.where(middle < 0, below, middle)
