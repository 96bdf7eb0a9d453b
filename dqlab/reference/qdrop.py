"""QDrop: randomly dropped activation quantization (Wei et al., ICLR 2022, arXiv 2203.05740)."""

import torch
from torch import Tensor


def mix(x_quantized: Tensor, x_full: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each element from `x_quantized` with probability `share`, else from `x_full`.

    Same shapes; `share` 1 and 0 return one of the inputs and draw nothing.
    """
    if share in (0.0, 1.0):
        return x_quantized if share else x_full
    draws = torch.rand(x_full.shape, generator=generator, device=x_full.device)
    return torch.where(draws < share, x_quantized, x_full)
