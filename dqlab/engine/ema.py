"""Exponential moving average of a module's parameters."""

import copy

import torch
from torch import nn


class MovingAverage:
    """A copy of `module` that follows it: average <- d average + (1 - d) value.

    d is min(decay, (1 + step) / (10 + step)), so that the first steps do not drag the
    initialisation along. Buffers are copied, not averaged.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards `module` after optimiser step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = list(self.module.parameters()), list(module.parameters())
        torch._foreach_lerp_(mine, [p.detach() for p in theirs], 1 - decay)
        for buffer, source in zip(self.module.buffers(), module.buffers(), strict=True):
            buffer.copy_(source)
