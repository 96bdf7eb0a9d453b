"""Power-of-two format for tensors spread over many magnitudes, such as softmax outputs.

With y = |x| / s, e = floor(log2 y) and rho = e + 1[y >= 1.5 * 2^e] (the arithmetic midpoint),

    xhat = 0 if -rho >= 2^bits, else sign(x) s 2^min(rho, 0)

(the quantizer for temporal features of QVD, Tian et al. 2024, arXiv 2407.11585). There are 2^bits
exponents and a zero; the sign, if any, is extra too. `s` is the largest magnitude. Unsigned
formats send negative values to 0.

Code 0 is zero, code +-(q + 1) is +-s 2^-q. Exponents end at 2^-96, which 7 and 8 bits reach: with
the smallest scale, 1e-8, anything less would be no normal float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.formats.base import Format, Range, one_scale

SIGN_AND_EXPONENT = -0x00800000  # bits of a float32, as an int32
LAST = 96
HALF_OCTAVE = 0x00400000  # added to a float32's bits, carries into the exponent from 1.5 * 2^e on


@dataclass(frozen=True)
class Log2(Format):
    """2^`bits` powers of two below the scale, and zero; 1 to 8 bits; `signed` mirrors them."""

    bits: int
    signed: bool = False
    kind: ClassVar[str] = "log2"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or self.bits not in range(1, 9):
            raise InvalidInputError(f"Log2 bits must be from 1 to 8, got {self.bits!r}")

    @property
    def name(self) -> str:
        """log2-4 or log2-4-signed."""
        return f"log2-{self.bits}" + ("-signed" if self.signed else "")

    @property
    def last(self) -> int:
        """Largest q: the smallest level above zero is s 2^-q."""
        return min(2**self.bits - 1, LAST)

    def params(self, low: Tensor, high: Tensor) -> Range:
        """S = max(|low|, |high|), or max(high, 0) if unsigned; z = 0."""
        low = torch.as_tensor(low)
        return one_scale(low if self.signed else torch.zeros_like(low), high, 1.0)

    def encode(self, x: Tensor, r: Range) -> Tensor:
        """Codes 0, +-1 .. +-2^bits as int32."""
        level = self._snap(x.to(r.scale.dtype).div(r.scale), r.zero_point)
        q = 1 - torch.frexp(level).exponent  # frexp's fraction of a power of two is 0.5
        return torch.where(level == 0, 0, q + 1).mul(level.sign()).to(torch.int32)

    def decode(self, codes: Tensor, r: Range) -> Tensor:
        """sign(code) s 2^(1 - |code|), 0 for code 0."""
        power = torch.exp2(1 - codes.abs().to(r.scale.dtype))
        return power.mul_(codes.sign()).mul_(r.scale)

    def levels(self, r: Range) -> Tensor:
        """Ascending values in a new last dimension: 2^bits + 1 of them, or 2^(bits+1) + 1."""
        positive = torch.exp2(torch.arange(-self.last, 1.0))
        negative = -positive.flip(0) if self.signed else positive[:0]
        table = torch.cat([negative, torch.zeros(1), positive]).to(r.scale)
        return table * r.scale.unsqueeze(-1)

    def _bounds(self, zero_point: Tensor) -> tuple[float, float]:
        return (-1.0 if self.signed else 0.0), 1.0

    def _snap(self, u: Tensor, zero_point: Tensor) -> Tensor:
        y = u.float().clamp_(*self._bounds(zero_point))
        bits = (y.view(torch.int32) + HALF_OCTAVE).bitwise_and_(SIGN_AND_EXPONENT)
        power = torch.hardshrink(bits.view(torch.float32), 0.75 * 2.0**-self.last)
        return power.add_(y, alpha=0).to(u.dtype)  # NaN stays NaN
