"""Logarithmic levels with a chosen reach, for skewed signed tensors such as time features.

With m = 2^(b-1) - 1 magnitudes over Omega octaves, tau = (m - 1) / Omega levels to an octave, and
y = |x| / s,

    q = round(-tau log2 y),   xhat = sign(x) s 2^(-q / tau),   0 if q > m - 1

so the relative error stays below 2^(1 / (2 tau)) - 1 down to s 2^-Omega. A design of dqlab's for
QVD (Tian et al., ACM MM 2024, arXiv 2407.11585), whose own quantizer is not public: unlike its
port's `Log2`, more bits make it finer. The sign is one of the b bits; `s` is the largest
magnitude.

Code 0 is zero, code +-(q + 1) is +-s 2^(-q / tau).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.formats.base import Format, Range, one_scale

OCTAVES = range(1, 25)


@dataclass(frozen=True)
class LogTau(Format):
    """2^(bits - 1) - 1 magnitudes over so many octaves below the scale, their signs, and zero."""

    bits: int
    octaves: int
    kind: ClassVar[str] = "logtau"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or self.bits not in range(3, 9):
            raise InvalidInputError(f"LogTau bits must be from 3 to 8, got {self.bits!r}")
        if isinstance(self.octaves, bool) or self.octaves not in OCTAVES:
            raise InvalidInputError(
                f"LogTau octaves must be a whole number from {OCTAVES[0]} to {OCTAVES[-1]}, got "
                f"{self.octaves!r}"
            )

    @property
    def name(self) -> str:
        """Such as logtau-4-6: bits, octaves."""
        return f"logtau-{self.bits}-{self.octaves}"

    @property
    def last(self) -> int:
        """Largest q: the smallest level above zero is s 2^-octaves."""
        return 2 ** (self.bits - 1) - 2

    @property
    def tau(self) -> float:
        """Levels to an octave."""
        return self.last / self.octaves

    def params(self, low: Tensor, high: Tensor) -> Range:
        """S = max(|low|, |high|); z = 0."""
        return one_scale(low, high, 1.0)

    def encode(self, x: Tensor, r: Range) -> Tensor:
        """Codes 0, +-1 .. +-(2^(bits-1) - 1) as int32."""
        u = x.to(r.scale.dtype).div(r.scale)
        q = self._exponent(u)
        return torch.where(q > self.last, 0, q + 1).mul(u.sign()).to(torch.int32)

    def decode(self, codes: Tensor, r: Range) -> Tensor:
        """sign(code) s 2^((1 - |code|) / tau), 0 for code 0."""
        powers = self._powers(r.scale)[codes.abs().sub(1).clamp(min=0).long()]
        return powers.mul_(codes.sign()).mul_(r.scale)

    def levels(self, r: Range) -> Tensor:
        """Ascending values in a new last dimension, 2^bits - 1 of them."""
        powers = self._powers(r.scale)
        table = torch.cat([-powers, torch.zeros(1).to(powers), powers.flip(0)])
        return table * r.scale.unsqueeze(-1)

    def _powers(self, like: Tensor) -> Tensor:
        """2^(-q / tau) for all q; looked up, because exp2 may differ with a tensor's length."""
        q = torch.arange(self.last + 1, dtype=torch.float64)
        return torch.exp2(-q / self.tau).to(like)

    def _bounds(self, zero_point: Tensor) -> tuple[float, float]:
        return -1.0, 1.0

    def _exponent(self, u: Tensor) -> Tensor:
        """Q of every element; infinite at 0."""
        return u.abs().clamp_(max=1.0).log2_().mul_(-self.tau).round_()

    def _snap(self, u: Tensor, zero_point: Tensor) -> Tensor:
        q = self._exponent(u)
        power = self._powers(u)[q.nan_to_num(0.0).clamp_(0, self.last).long()]
        power.masked_fill_(q > self.last, 0.0).mul_(u.sign())
        return torch.where(u.isnan(), u, power)
