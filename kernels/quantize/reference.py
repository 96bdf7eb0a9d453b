"""The definition in plain torch: what every other implementation must match bit for bit."""

import torch
from torch import Tensor


def refuses(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> str | None:
    """Take every call: torch runs it on any device."""
    return None


def run(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Compute the codes step by step, one pass over memory for each line."""
    steps = x.contiguous() / scale.reshape(())
    steps = torch.where(steps.isnan(), 0.0, steps)
    codes = torch.round(steps) + zero_point.reshape(())
    return codes.clamp(0, 2**bits - 1).to(torch.uint8)
