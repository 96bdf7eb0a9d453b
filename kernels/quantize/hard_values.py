"""Values on which two ways to compute codes would differ, if they differ anywhere."""

import torch
from torch import Tensor


def hard_values(count: int, scale: float, generator: torch.Generator) -> Tensor:
    """Random values, exact halves, their upper neighbours, and values far outside any range.

    Args:
        count: how many.
        scale: of the codes they are hard for.
        generator: of the random ones; the values lie on its device.

    """
    rows = torch.arange(count, device=generator.device)
    halves = (rows % 601 - 300 + 0.5) * scale
    near = torch.nextafter(halves, torch.full_like(halves, float("inf")))
    drawn = torch.randn(count, generator=generator, device=generator.device) * 40 * scale
    return torch.stack([drawn, halves, near, halves * 1e30])[rows % 4, rows]
