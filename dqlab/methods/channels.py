"""What passes the layers of a network that is not yet wrapped: channel ranges and some inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.fit import capture
from dqlab.trajectory import States, replay


@dataclass
class ChannelRange:
    """A pre-hook that keeps the lowest and highest input of every channel, `[C]` each."""

    path: str
    low: Tensor | None = None
    high: Tensor | None = None

    def __call__(self, layer: nn.Module, args: tuple, named: dict[str, Tensor]) -> None:
        """See one batch; raises InvalidInputError for NaN or infinity."""
        (x,) = (*args, *named.values())
        low, high = channel_range(layer, x)
        if not bool((low.isfinite() & high.isfinite()).all()):
            raise InvalidInputError(
                f"NaN or infinity reaches {self.path} on the calibration set. Check the weights "
                "before it and the set."
            )
        if self.low is not None:
            low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)
        self.low, self.high = low, high

    @classmethod
    def over(cls, parts: Sequence[ChannelRange]) -> ChannelRange:
        """The range of all that several ranges of one layer have seen."""
        low = torch.stack([part.low for part in parts]).amin(0)
        return cls(parts[0].path, low, torch.stack([part.high for part in parts]).amax(0))


def channel_range(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each input channel of a layer, `[C]`."""
    channel = -1 if isinstance(layer, nn.Linear) else 1
    rows = x.detach().movedim(channel, 0).flatten(1)
    return tuple(rows.aminmax(dim=1))


def channel_ranges(
    denoiser: nn.Module, paths: Sequence[str], states: States
) -> dict[str, ChannelRange]:
    """Channel ranges of the inputs of plain layers over all rows of `states`."""
    seen = {path: ChannelRange(path) for path in paths}
    handles = [
        denoiser.get_submodule(path).register_forward_pre_hook(one, with_kwargs=True)
        for path, one in seen.items()
    ]
    try:
        replay(denoiser, states)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def some_inputs(
    denoiser: nn.Module, paths: Sequence[str], states: States, rows: int
) -> dict[str, Tensor]:
    """Inputs of layers, given in execution order, at evenly spaced rows of `states`."""
    chosen = torch.linspace(0, len(states) - 1, rows).round().long().unique()
    seen = capture(denoiser, paths, states[chosen], outputs=False)
    return {path: one.leaves[0] for path, one in seen.items()}
