"""Uniform asymmetric levels whose number may differ from sampling step to sampling step.

    xhat = s (clip(round(x / s) + z, 0, n) - z),   n = 2^b - 1 with b the step's bits

The range's zero point holds z and n side by side in a last dimension of its own: `[T, 2]` beside a
scale `[T]`, `[2]` beside a single one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dqlab.formats.affine import Affine
from dqlab.formats.base import Format, Range


@dataclass(frozen=True)
class Stepped(Format):
    """At most `bits` bits; `of` makes the range of a step that has fewer."""

    bits: int
    kind: ClassVar[str] = "stepped"

    @property
    def name(self) -> str:
        """Such as uint8-stepped."""
        return f"uint{self.bits}-stepped"

    @staticmethod
    def of(found: Range, bits: int) -> Range:
        """An asymmetric range of a `bits`-bit grid as one of this format."""
        n = torch.full_like(found.zero_point, 2**bits - 1)
        return Range(found.scale, torch.stack([found.zero_point, n], -1))

    def params(self, low: Tensor, high: Tensor) -> Range:
        """That of the asymmetric grid of all bits."""
        return self.of(Affine(self.bits).params(low, high), self.bits)

    def encode(self, x: Tensor, r: Range) -> Tensor:
        """Codes 0..n as int32."""
        u = self._snap(x.to(r.scale.dtype).div(r.scale), r.zero_point)
        return (u + r.zero_point[..., :1]).to(torch.int32)

    def decode(self, codes: Tensor, r: Range) -> Tensor:
        """S (q - z)."""
        return (codes.to(r.scale.dtype) - r.zero_point[..., :1]) * r.scale

    def levels(self, r: Range) -> Tensor:
        """Ascending, 2^bits of them; those above a step's highest repeat it."""
        q = torch.arange(2**self.bits, device=r.scale.device)
        z, n = r.zero_point.split(1, -1)
        return (torch.minimum(q, n) - z) * r.scale.unsqueeze(-1)

    def _bounds(self, zero_point: Tensor) -> tuple[Tensor, Tensor]:
        z, n = zero_point.split(1, -1)
        return -z, n - z

    def _snap(self, u: Tensor, zero_point: Tensor) -> Tensor:
        return u.round_().clamp_(*self._bounds(zero_point))
