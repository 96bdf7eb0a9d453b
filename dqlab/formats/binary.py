"""One bit: xhat = s sign(x), with sign(0) = +1.

The gradient of sign is that of clip(x, -1, 1) (Hubara et al., NeurIPS 2016, arXiv 1602.02830,
equation 4):

    dxhat/dx = s 1[|x| <= 1],   dxhat/ds = sign(x)

The least-squares scale is s = mean |x| (XNOR-Net, Rastegari et al., ECCV 2016, arXiv 1603.05279,
equation 6), found by `dqlab.ranges.mean_abs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dqlab.formats.base import Format, Range, one_scale


@dataclass(frozen=True)
class Binary(Format):
    """The two levels -s (code 0) and +s (code 1)."""

    kind: ClassVar[str] = "binary"
    bits: ClassVar[int] = 1
    name: ClassVar[str] = "binary"

    def params(self, low: Tensor, high: Tensor) -> Range:
        """S = max(|low|, |high|), z = 0: covers the range; `mean_abs` is nearly always better."""
        return one_scale(low, high, 1.0)

    def encode(self, x: Tensor, r: Range) -> Tensor:
        """1 where x >= 0, else 0, int32."""
        return (x >= 0).to(torch.int32)

    def decode(self, codes: Tensor, r: Range) -> Tensor:
        """S (2 code - 1)."""
        return codes.to(r.scale.dtype).mul_(2).sub_(1).mul_(r.scale)

    def levels(self, r: Range) -> Tensor:
        """-s and s in a new last dimension."""
        return torch.stack([-r.scale, r.scale], dim=-1)

    def fake_quant(self, x: Tensor, r: Range, grad_scale: float = 1.0) -> Tensor:
        """Values s sign(x); gradients as in the module docstring, that of s times grad_scale."""
        return _SignTimesScale.apply(x, r.scale, grad_scale)

    def _bounds(self, zero_point: Tensor) -> tuple[float, float]:
        return -1.0, 1.0


class _SignTimesScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, grad_scale):
        ctx.save_for_backward(x, scale)
        ctx.grad_scale = grad_scale
        return (x >= 0).to(scale.dtype).mul_(2).sub_(1).mul_(scale).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        dx = (grad * scale * (x.abs() <= 1)).to(x.dtype)
        ds = torch.where(x >= 0, grad, -grad).sum_to_size(scale.shape) * ctx.grad_scale
        return dx, ds.to(scale.dtype), None
