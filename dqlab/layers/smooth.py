"""Smoothed and shifted layers: a channel-wise affine rewrite of a layer's input.

    W x + b = (W diag(S)) ((x - delta) / S) + (b + sum_k W_k delta),   k over kernel positions

exact before quantization; afterwards S and delta decide how evenly the channels share one range.
delta is 0 where only scales are given. The rewrite is part of the layer and is saved with it. At
run time it is one multiplication and one addition per element, or none where the kernel takes
them per channel.

A convolution's zero padding is put around x before the shift, so that it arrives as
-delta / S in each channel: padding the shifted input with zeros would make borders wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.layers.wrap import DIVISOR, LAYERS, SHIFT


@torch.no_grad()
def smooth_layer(
    layer: nn.Module, S: Tensor, path: str = "layer", shift: Tensor | None = None
) -> None:
    """Rewrite a plain layer by S `[C]` and shift `[C]`, in place, before wrapping.

    Until it is wrapped the layer does not divide or shift, so the model must not be run. Scales
    alone may be given twice: what then counts is their product.

    Raises:
        InvalidInputError: if S or the shift does not fit the layer's input channels or is not
            finite, S is not positive, the layer is grouped or of a form that cannot be wrapped, or
            a shift meets a layer that is rewritten already or pads with something else than zeros.

    """
    if type(layer).forward not in {kind.forward for kind in LAYERS}:
        raise InvalidInputError(f"{path} is a {type(layer).__name__}, which cannot be smoothed.")
    channels = _channels(layer)
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
    if shift is not None:
        _shift_layer(layer, shift, path)
    S = S.to(layer.weight)
    layer.weight.mul_(S.reshape(-1, *[1] * (layer.weight.ndim - 2)))
    before = getattr(layer, DIVISOR, None)
    layer.register_buffer(DIVISOR, S if before is None else before * S)


def _shift_layer(layer: nn.Module, shift: Tensor, path: str) -> None:
    """Move what the shift takes out of the input into the bias."""
    if shift.shape != (_channels(layer),) or not bool(shift.isfinite().all()):
        raise InvalidInputError(
            f"{path} reads {_channels(layer)} channels; it cannot be shifted by "
            f"{tuple(shift.shape)} values that must be finite. Give one per channel."
        )
    padding = getattr(layer, "padding_mode", "zeros")
    if padding != "zeros" or getattr(layer, DIVISOR, None) is not None:
        raise InvalidInputError(
            f"{path} pads with {padding!r} or is smoothed already; only a layer that pads with "
            "zeros and is as it was loaded can be shifted. Leave it out."
        )
    shift = shift.to(layer.weight)
    moved = layer.weight.flatten(2).sum(2) if layer.weight.ndim > 2 else layer.weight
    bias = moved @ shift
    layer.bias = nn.Parameter(bias if layer.bias is None else layer.bias + bias, False)
    layer.register_buffer(SHIFT, shift)


def _channels(layer: nn.Module) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def expect_divisor(layer: nn.Module, shifted: bool = False) -> None:
    """Make room for the numbers of a rewritten layer that are yet to be loaded."""
    ones = torch.ones(_channels(layer)).to(layer.weight)
    layer.register_buffer(DIVISOR, ones)
    if shifted:
        layer.register_buffer(SHIFT, torch.zeros_like(ones))
        if layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)), False)


def smoothed(model: nn.Module) -> list[str]:
    """Paths of the smoothed layers."""
    return [path for path, m in model.named_modules() if getattr(m, DIVISOR, None) is not None]


def shifted(model: nn.Module) -> list[str]:
    """Paths of the shifted layers, which are smoothed too."""
    return [path for path, m in model.named_modules() if getattr(m, SHIFT, None) is not None]
