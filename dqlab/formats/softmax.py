"""Softmax outputs whose rows keep their mass: what rounding takes is given back evenly.

    xhat_j = s clip(round(x_j / s), 0, 2^bits - 1) + delta / N       where x_j > 0, else 0

over rows x `[..., N']` in the last dimension, N of which are above 0: a masked key has probability
0 and stays so (Pandey et al., ICCV workshop 2023, arXiv 2309.01729). The range's zero point holds
delta, the mass a row loses on average, measured beforehand; with `own_row` each row's own is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dqlab.formats.affine import Affine
from dqlab.formats.base import Format, Range


@dataclass(frozen=True)
class CorrectedSoftmax(Format):
    """Unsigned levels for whole rows of probabilities; code -1 is a masked key."""

    bits: int
    own_row: bool = False
    kind: ClassVar[str] = "corrected-softmax"

    @property
    def name(self) -> str:
        """Such as uint8-softmax."""
        return f"uint{self.bits}-softmax" + ("-row" if self.own_row else "")

    def params(self, low: Tensor, high: Tensor) -> Range:
        """S = high / (2^bits - 1), and no mass to give back."""
        return Affine(self.bits, "always_zero").params(low, high)

    def encode(self, x: Tensor, r: Range) -> Tensor:
        """Codes -1 (masked) .. 2^bits - 1 as int32."""
        q = self._snap(x.to(r.scale.dtype).div(r.scale), r.zero_point)
        return torch.where(x > 0, q, -1).to(torch.int32)

    def decode(self, codes: Tensor, r: Range) -> Tensor:
        """Whole rows: S q, and the row's mass."""
        return self._with_mass(codes.clamp(min=0).to(r.scale.dtype) * r.scale, codes >= 0, r)

    def levels(self, r: Range) -> Tensor:
        """S q, ascending, without the mass, which depends on a row's length."""
        q = torch.arange(2**self.bits, device=r.scale.device)
        return q * r.scale.unsqueeze(-1)

    def _with_mass(self, values: Tensor, visible: Tensor, r: Range) -> Tensor:
        delta = 1 - values.sum(-1, keepdim=True) if self.own_row else r.zero_point
        return values + visible * (delta / visible.sum(-1, keepdim=True).clamp(min=1))

    def _bounds(self, zero_point: Tensor) -> tuple[float, float]:
        return 0.0, 2.0**self.bits - 1

    def _snap(self, u: Tensor, zero_point: Tensor) -> Tensor:
        return u.round_().clamp_(*self._bounds(zero_point))

    def _values(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        values = super()._values(x.to(scale.dtype), scale, zero_point)
        return self._with_mass(values, x > 0, Range(scale, zero_point)).to(x.dtype)
