"""Smoothed layers: input channels are divided by a factor that the weight is multiplied by.

    W x = (W diag(S)) (x / S)

exact before quantization; afterwards S decides how evenly the channels share one range. The
division is part of the layer and is saved with it. At run time it is one multiplication per
element, or none where the kernel takes a scale per channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.layers.wrap import DIVISOR, LAYERS


@torch.no_grad()
def smooth_layer(layer: nn.Module, S: Tensor, path: str = "layer") -> None:
    """Smooth a plain layer by S `[C]`, in place, before wrapping. Twice is by the product.

    Until it is wrapped the layer does not divide, so the model must not be run.

    Raises:
        InvalidInputError: if S does not fit the layer's input channels or is not positive and
            finite, or the layer is grouped or of a form that cannot be wrapped.

    """
    if type(layer).forward not in {kind.forward for kind in LAYERS}:
        raise InvalidInputError(f"{path} is a {type(layer).__name__}, which cannot be smoothed.")
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    if getattr(layer, "groups", 1) != 1 or S.shape != (channels,):
        raise InvalidInputError(
            f"{path} reads {channels} channels in {getattr(layer, 'groups', 1)} group(s); it "
            f"cannot be smoothed by {tuple(S.shape)} factors. Give one per channel of one group."
        )
    if not bool((S.isfinite() & (S > 0)).all()):
        raise InvalidInputError(
            f"The smoothing factors of {path} range from {float(S.min()):.3g} to "
            f"{float(S.max()):.3g}; they must be positive and finite. Set a floor."
        )
    S = S.to(layer.weight)
    layer.weight.mul_(S.reshape(-1, *[1] * (layer.weight.ndim - 2)))
    before = getattr(layer, DIVISOR, None)
    layer.register_buffer(DIVISOR, S if before is None else before * S)


def expect_divisor(layer: nn.Module) -> None:
    """Make room for the factors of a smoothed layer whose numbers are yet to be loaded."""
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    layer.register_buffer(DIVISOR, torch.ones(channels).to(layer.weight))


def smoothed(model: nn.Module) -> list[str]:
    """Paths of the smoothed layers."""
    return [path for path, m in model.named_modules() if getattr(m, DIVISOR, None) is not None]
