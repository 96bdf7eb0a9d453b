"""Weight quantizers whose rounding can be learned; formulas in `dqlab.reference.adaround`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.formats import Affine
from dqlab.layers import QuantizedLayer, Quantizer
from dqlab.reference.adaround import (
    hard_weight,
    initial_alpha,
    rectified_sigmoid,
    rounding_regularizer,
)

SETTLED = 0.01
"""A rounding variable is decided when h is this close to 0 or 1."""


class SoftRounding(nn.Module):
    """Stands in for a weight quantizer while its rounding is learned.

    Attributes:
        quantizer: the quantizer it stands in for; its format and range stay fixed.
        alpha: the rounding variable, shaped as the weight.

    """

    def __init__(self, quantizer: Quantizer, weight: Tensor):
        super().__init__()
        fmt, found = quantizer.format, quantizer.range
        if not isinstance(fmt, Affine):
            raise NotApplicableError(
                f"Rounding can be learned on evenly spaced levels only; {quantizer.site} has the "
                f"format {fmt}. Choose weights=4, for instance, or leave this method's fit out."
            )
        if found is None:
            raise InvalidInputError(
                f"{quantizer.site} has no range yet: set weight ranges before learning to round."
            )
        self.quantizer, self.weight = quantizer, weight.detach().to(found.scale, copy=True)
        self.scale, self.zero_point = found.scale, found.zero_point
        self.alpha = nn.Parameter(initial_alpha(self.weight, self.scale))
        # W / s below the rounding, z added: all of it that does not change.
        self.low = (self.weight / self.scale).floor() + self.zero_point
        self.h = rectified_sigmoid(self.alpha)

    def forward(self, weight: Tensor) -> Tensor:
        """The softly rounded weight, in the dtype of `weight`, which is known since the start."""
        fmt = self.quantizer.format
        self.h = rectified_sigmoid(self.alpha)
        codes = (self.low + self.h).clamp(fmt.q_min, fmt.q_max)
        return codes.sub(self.zero_point).mul(self.scale).to(weight.dtype)

    def penalty(self, beta: float, lam: float) -> Tensor:
        """The regulariser at the rounding of the last forward."""
        return rounding_regularizer(self.h, beta, lam)

    @torch.no_grad()
    def hard(self) -> Tensor:
        """The weight with every rounding decided."""
        fmt = self.quantizer.format
        return hard_weight(
            self.weight, self.scale, self.zero_point, self.alpha, fmt.q_min, fmt.q_max
        )

    @torch.no_grad()
    def settled(self) -> float:
        """Share of rounding variables that are decided."""
        h = rectified_sigmoid(self.alpha)
        return float((torch.minimum(h, 1 - h) < SETTLED).float().mean())


def soften(layers: Iterable[QuantizedLayer]) -> list[tuple[QuantizedLayer, str, SoftRounding]]:
    """Put a SoftRounding in the place of every weight quantizer that has a format.

    Returns:
        For `harden`: the layer, the place, and what stands there now.

    """
    placed = []
    for layer in layers:
        names = {m: n for n, m in layer.named_modules() if isinstance(m, Quantizer)}
        for quantizer, piece in layer.weight_quantizer.pieces(layer.weight):
            if quantizer.format is not None:
                placed.append((layer, names[quantizer], SoftRounding(quantizer, piece)))
    for layer, name, soft in placed:
        layer.set_submodule(name, soft)
    return placed


@torch.no_grad()
def harden(placed: list[tuple[QuantizedLayer, str, SoftRounding]]) -> None:
    """Decide every rounding, write it into the weights, and put the quantizers back."""
    for layer, name, soft in placed:
        layer.set_submodule(name, soft.quantizer)
    for layer in dict.fromkeys(layer for layer, _, _ in placed):
        mine = {soft.quantizer: soft for owner, _, soft in placed if owner is layer}
        pieces = layer.weight_quantizer.pieces(layer.weight)
        decided = [mine[q].hard() if q in mine else piece for q, piece in pieces]
        layer.weight.copy_(decided[0] if len(decided) == 1 else torch.cat(decided, 1))
