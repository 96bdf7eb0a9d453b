"""What a quantized network costs, by the book: bytes from codes and scales, bit-operations.

    size    = sum over weights of (numbers x bits / 8) + 4 bytes per scale and per zero point
              + the bytes of what stays in full precision
    bit-ops = sum over products of MACs x bits of one operand x bits of the other
              (32 for full precision; attention's QK' and PV count with their operands' bits;
              where bits differ by step, the mean over steps)

Both are computed, not measured on a file or a device.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from dqlab.formats.stepped import Stepped
from dqlab.layers import AnswerTable, QuantizedAttention, QuantizedLayer, Quantizer
from dqlab.trajectory import States

FULL_BITS = 32


@dataclass(frozen=True)
class Cost:
    """Computed size and work of a quantized denoiser and of its full-precision original.

    Attributes:
        bytes, full_bytes: stored size.
        bit_ops, full_bit_ops: bit-operations of one call with one row.
        macs: multiply-accumulates of the same call.

    """

    bytes: int
    full_bytes: int
    bit_ops: float
    macs: int

    @property
    def full_bit_ops(self) -> float:
        """The same call in 32-bit arithmetic."""
        return float(self.macs * FULL_BITS**2)


class _Counter:
    """Adds up MACs and bit-operations while a forward runs."""

    def __init__(self) -> None:
        self.macs, self.bit_ops = 0, 0.0
        self.widths: dict[tuple[int, str], int] = {}

    def add(self, macs: int, left: Quantizer, right: Quantizer) -> None:
        self.macs += macs
        self.bit_ops += macs * float((_bits(left) * _bits(right)).mean())

    def layer(self, module: QuantizedLayer, args: tuple, output: Tensor) -> None:
        macs = output.numel() * module.weight[0].numel()
        self.add(macs, module.weight_quantizer, module.input_quantizer)

    def width(self, owner: QuantizedAttention, operand: str, module, args, output: Tensor) -> None:
        self.widths[id(owner), operand] = output.shape[-1]

    def attention(self, owner: QuantizedAttention, module, args, output: Tensor) -> None:
        scores = output.numel()
        width_q, width_v = self.widths[id(owner), "q"], self.widths[id(owner), "v"]
        self.add(scores * width_q, owner.q_quantizer, owner.k_quantizer)
        self.add(scores * width_v, owner.p_quantizer, owner.v_quantizer)


def cost(denoiser: nn.Module, example: States) -> Cost:
    """Computed cost of a quantized denoiser, work counted on the first row of `example`."""
    counter, handles = _Counter(), []
    for module in denoiser.modules():
        if isinstance(module, QuantizedLayer):
            handles.append(module.register_forward_hook(counter.layer))
        elif isinstance(module, QuantizedAttention):
            for operand in ("q", "v"):
                watch = partial(counter.width, module, operand)
                site = getattr(module, f"{operand}_quantizer")
                handles.append(site.register_forward_hook(watch))
            count = partial(counter.attention, module)
            handles.append(module.p_quantizer.register_forward_hook(count))
    try:
        with torch.no_grad():
            example[:1].call(denoiser)
    finally:
        for handle in handles:
            handle.remove()
    full = sum(4 * p.numel() for p in denoiser.parameters())
    return Cost(stored_bytes(denoiser), full, counter.bit_ops, counter.macs)


def stored_bytes(denoiser: nn.Module) -> int:
    """Codes at their bit-width, ranges in fp32, the rest of the parameters in fp32."""
    total = sum(4 * p.numel() for p in denoiser.parameters())
    for module in denoiser.modules():
        if isinstance(module, QuantizedLayer) and module.weight_quantizer.format is not None:
            spared = 4 - module.weight_quantizer.format.bits / 8
            total -= int(module.weight.numel() * spared)
        elif isinstance(module, Quantizer) and module.scale is not None:
            total += 4 * (module.scale.numel() + module.zero_point.numel())
        elif isinstance(module, AnswerTable):
            total += sum(t.numel() * t.element_size() for t in module.buffers())
    return total


def _bits(quantizer: Quantizer) -> Tensor:
    """Bits of the operand: one number, or one per sampling step."""
    if isinstance(quantizer.format, Stepped) and quantizer.zero_point is not None:
        return (quantizer.zero_point[..., 1] + 1).log2()
    return torch.tensor(float(FULL_BITS if quantizer.format is None else quantizer.format.bits))
