"""Small floating-point formats: sign, E exponent bits, M mantissa bits, times a scale.

With exponent field e, mantissa field m and bias b = 2^(E-1) - 1 the levels are

    e = 0: +-2^(1-b) m / 2^M          e > 0: +-2^(e-b) (1 + m / 2^M)

(OCP Microscaling Formats specification v1.0, section 5.3; Micikevicius et al. 2022, arXiv
2209.05433, for the 8-bit ones). E4M3 gives its highest code to NaN, so that it ends at 448; E5M2
gives its highest exponent to infinity and NaN and ends at 57344; shorter formats use every code.
Rounding is to nearest, ties to the even mantissa (with no mantissa bits a tie goes to the larger
magnitude); larger values saturate; NaN stays NaN in `fake_quant`.

Codes are the hardware's bit patterns. Everything is computed in float32, where all levels are
exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.formats.base import Format, Range, one_scale

USUAL = {(2, 1): "fp4", (3, 2): "fp6", (4, 3): "fp8"}  # what the bare names stand for
NOT_NUMBERS = {(4, 3): 1, (5, 2): 4}  # codes per sign that stand for NaN or infinity
EXPONENT_BITS = 0x7F800000  # of a float32


@dataclass(frozen=True)
class Float(Format):
    """`exponent` and `mantissa` bits and a sign, 3 to 8 bits in all."""

    exponent: int
    mantissa: int
    kind: ClassVar[str] = "float"

    def __post_init__(self) -> None:
        if self.exponent < 1 or self.mantissa < 0 or not 3 <= self.bits <= 8:
            raise InvalidInputError(
                f"Float needs exponent >= 1, mantissa >= 0 and 3 to 8 bits with the sign, "
                f"got exponent {self.exponent}, mantissa {self.mantissa}"
            )

    @property
    def bits(self) -> int:
        """Sign, exponent and mantissa bits."""
        return 1 + self.exponent + self.mantissa

    @property
    def name(self) -> str:
        """fp4, fp6 and fp8 for E2M1, E3M2 and E4M3, else such as fp8-e5m2."""
        layout = (self.exponent, self.mantissa)
        return USUAL.get(layout, f"fp{self.bits}-e{self.exponent}m{self.mantissa}")

    @property
    def largest(self) -> float:
        """Highest level at scale 1, such as 6 for E2M1."""
        return self._magnitudes()[-1].item()

    def params(self, low: Tensor, high: Tensor) -> Range:
        """S = max(|low|, |high|) / largest level, z = 0."""
        return one_scale(low, high, self.largest)

    def encode(self, x: Tensor, r: Range) -> Tensor:
        """Bit patterns as int32: sign, exponent, mantissa. Zero has one code, 0."""
        level = self._snap(x.to(r.scale.dtype).div(r.scale), r.zero_point).float()
        magnitude = torch.searchsorted(self._magnitudes().to(level.device), level.abs())
        return (magnitude + (level < 0) * 2 ** (self.bits - 1)).to(torch.int32)

    def decode(self, codes: Tensor, r: Range) -> Tensor:
        """Level of each bit pattern times s; NaN for patterns that are no number."""
        spare = torch.full((NOT_NUMBERS.get((self.exponent, self.mantissa), 0),), torch.nan)
        half = torch.cat([self._magnitudes(), spare])
        table = torch.cat([half, 0 - half]).to(r.scale)
        return table[codes.long()].mul_(r.scale)

    def levels(self, r: Range) -> Tensor:
        """The distinct values, ascending, in a new last dimension (15 for every 4-bit format)."""
        positive = self._magnitudes()
        table = torch.cat([-positive[1:].flip(0), positive]).to(r.scale)
        return table * r.scale.unsqueeze(-1)

    def _magnitudes(self) -> Tensor:
        return _magnitudes(self.exponent, self.mantissa)

    def _bounds(self, zero_point: Tensor) -> tuple[float, float]:
        return -self.largest, self.largest

    def _snap(self, u: Tensor, zero_point: Tensor) -> Tensor:
        y = u.float().clamp_(-self.largest, self.largest)
        # Adding 1.5 * 2^23 steps leaves float32 no bits below one step: the processor does the
        # rounding. The step is the power of two below |y|, at least that of the subnormals.
        power = y.view(torch.int32).bitwise_and(EXPONENT_BITS).view(torch.float32)
        smallest_normal = 2.0 ** (2 - 2 ** (self.exponent - 1))
        shift = power.clamp_(min=smallest_normal).mul_(1.5 * 2.0 ** (23 - self.mantissa))
        return y.add_(shift).sub_(shift).to(u.dtype)


@lru_cache
def _magnitudes(exponent: int, mantissa: int) -> Tensor:
    """Levels >= 0 in ascending order, which is the order of their bit patterns."""
    count = 2 ** (exponent + mantissa) - NOT_NUMBERS.get((exponent, mantissa), 0)
    fields = [divmod(code, 2**mantissa) for code in range(count)]
    bias = 2 ** (exponent - 1) - 1
    return torch.tensor(
        [2.0 ** (max(e, 1) - bias) * ((e > 0) + m / 2**mantissa) for e, m in fields]
    )
