"""Uniform affine format: equally spaced levels s (q - z), q = q_min..q_max.

    xhat = s (clip(round(x / s) + z, q_min, q_max) - z),   round half to even

(Jacob et al., CVPR 2018, arXiv 1712.05877, with the parameter rules that published
post-training quantization code uses; n = 2^bits, L = 2^(bits-1) - 1, tau = max(|low|, |high|)):

variant            codes     s                     z                as in
asymmetric         0..n-1    (high - low) / (n-1)  -round(low / s)  QDrop; widened to hold 0
sym_offset         0..n-1    2 tau / (n-1)         n / 2            PTQ4DM; one-sided data as above
sym_signed_narrow  -L-1..L   tau / L               0                Q-Diffusion
sym_signed_full    -L-1..L   2 tau / (n-1)         0                QDrop
always_zero        0..n-1    high / (n-1)          0                data >= 0, such as softmax

In `sym_offset` the exact zero point tau / s = (n-1)/2 is a half-way case (127.5 for 8 bits) that
floating point decides either way in other code; here it is always rounded up to n/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.formats.base import SMALLEST_SCALE, Format, Range

SUFFIXES = {  # variant -> (signed codes, ending of the name)
    "asymmetric": (False, ""),
    "sym_offset": (False, "-offset"),
    "sym_signed_narrow": (True, "-narrow"),
    "sym_signed_full": (True, ""),
    "always_zero": (False, "-zero"),
}


@dataclass(frozen=True)
class Affine(Format):
    """Uniform levels of 1 to 16 bits, placed by one of five variants (module docstring)."""

    bits: int
    variant: str = "asymmetric"
    kind: ClassVar[str] = "affine"

    def __post_init__(self) -> None:
        if self.variant not in SUFFIXES:
            raise UnknownNameError(
                f"unknown affine variant {self.variant!r}; there are {', '.join(SUFFIXES)}"
            )
        if isinstance(self.bits, bool) or not isinstance(self.bits, int):
            raise InvalidInputError(f"bits must be an integer from 1 to 16, got {self.bits!r}")
        if not 1 <= self.bits <= 16:
            raise InvalidInputError(f"bits must be from 1 to 16, got {self.bits}")
        if self.variant == "sym_signed_narrow" and self.bits == 1:
            raise InvalidInputError(
                "sym_signed_narrow needs at least 2 bits: with 1 bit its highest level is 0; "
                "use Binary() for one signed bit"
            )

    @property
    def name(self) -> str:
        """Such as uint8, int4, int4-narrow, uint8-offset, uint8-zero."""
        signed, suffix = SUFFIXES[self.variant]
        return f"{'int' if signed else 'uint'}{self.bits}{suffix}"

    @property
    def q_min(self) -> int:
        """Lowest code."""
        return -(2 ** (self.bits - 1)) if SUFFIXES[self.variant][0] else 0

    @property
    def q_max(self) -> int:
        """Highest code."""
        return self.q_min + 2**self.bits - 1

    def params(self, low: Tensor, high: Tensor) -> Range:
        """Scale and zero point for data in [low, high], by the variant's rule."""
        low, high = torch.as_tensor(low), torch.as_tensor(high)
        low, high = low.clamp(max=0), high.clamp(min=0)
        tau = torch.maximum(-low, high)
        steps = 2**self.bits - 1
        zero = torch.zeros_like(tau)
        if self.variant == "asymmetric":
            return self._cover(low, high)
        if self.variant == "sym_offset":
            return self._offset(low, high)
        if self.variant == "sym_signed_narrow":
            return Range((tau / self.q_max).clamp(min=SMALLEST_SCALE), zero)
        if self.variant == "sym_signed_full":
            return Range((2 * tau / steps).clamp(min=SMALLEST_SCALE), zero)
        return Range((high / steps).clamp(min=SMALLEST_SCALE), zero)

    def _cover(self, low: Tensor, high: Tensor) -> Range:
        steps = 2**self.bits - 1
        scale = ((high - low) / steps).clamp(min=SMALLEST_SCALE)
        # 0 - round(..) and not -round(..): the latter would store a zero point of -0.0
        return Range(scale, (0 - (low / scale).round()).clamp(0, steps))

    def _offset(self, low: Tensor, high: Tensor) -> Range:
        one_sided = self._cover(low, high)
        scale = (2 * torch.maximum(-low, high) / (2**self.bits - 1)).clamp(min=SMALLEST_SCALE)
        two_sided = (low < 0) & (high > 0)
        middle = torch.full_like(scale, 2 ** (self.bits - 1))
        return Range(
            torch.where(two_sided, scale, one_sided.scale),
            torch.where(two_sided, middle, one_sided.zero_point),
        )

    def encode(self, x: Tensor, r: Range) -> Tensor:
        """Codes q_min..q_max as int32."""
        u = x.to(r.scale.dtype).div(r.scale)
        return (self._snap(u, r.zero_point) + r.zero_point).to(torch.int32)

    def decode(self, codes: Tensor, r: Range) -> Tensor:
        """S (q - z)."""
        return codes.to(r.scale.dtype).sub(r.zero_point).mul_(r.scale)

    def levels(self, r: Range) -> Tensor:
        """The 2^bits values, ascending, in a new last dimension."""
        q = torch.arange(self.q_min, self.q_max + 1, device=r.scale.device)
        return self.decode(q, Range(r.scale.unsqueeze(-1), r.zero_point.unsqueeze(-1)))

    def _bounds(self, zero_point: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_min - zero_point, self.q_max - zero_point

    def _snap(self, u: Tensor, zero_point: Tensor) -> Tensor:
        # clamp with numbers is vectorised, with tensors it is not; reading the number of a CUDA
        # tensor would wait for the device, and of a traced one break the graph.
        if zero_point.numel() == 1 and zero_point.is_cpu and not torch.compiler.is_compiling():
            z = zero_point.item()
            return u.round_().clamp_(self.q_min - z, self.q_max - z)
        return u.round_().add_(zero_point).clamp_(self.q_min, self.q_max).sub_(zero_point)
