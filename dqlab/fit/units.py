"""The units of block reconstruction, in the order they run.

A unit is a residual block, an attention block or a whole transformer block, and every Conv or
Linear outside of those by itself (BRECQ, Li et al., ICLR 2021, arXiv 2102.05426, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from dqlab.fit.capture import Captured
from dqlab.layers import QuantizedAttention, QuantizedLayer

BLOCKS = {
    "transformer": ("*TransformerBlock", "*TransformerBlock[23]D"),
    "residual": ("*ResnetBlock*", "*ResBlock*"),
}
"""Class names, among a module's ancestors too, that make it a unit."""


@dataclass(frozen=True)
class Unit:
    """What is reconstructed at once.

    Attributes:
        path: of the module.
        kind: "transformer", "residual", "attention" or "layer".
        layers: paths of the quantized layers in it, in the order they run.

    """

    path: str
    kind: str
    layers: tuple[str, ...]


def units_of(denoiser: nn.Module, order: Sequence[str], layers: Sequence[str]) -> list[Unit]:
    """Units of a wrapped denoiser by the order in which they start to run.

    Args:
        denoiser: wrapped by quantizers.
        order: every module path in the order it was entered (`Anatomy.order`).
        layers: paths of the quantized layers in execution order (`Anatomy.layers`).

    """
    units: list[Unit] = []
    for path in order:
        if any(path.startswith(f"{unit.path}.") for unit in units):
            continue
        if kind := path and _kind(denoiser.get_submodule(path)):
            inside = [p for p in layers if p == path or p.startswith(f"{path}.")]
            units.append(Unit(path, kind, tuple(inside)))
    return units


def _kind(module: nn.Module) -> str | None:
    names = [cls.__name__ for cls in type(module).__mro__]
    for kind, patterns in BLOCKS.items():
        if any(fnmatchcase(name, pattern) for name in names for pattern in patterns):
            return kind
    if isinstance(module, QuantizedAttention):
        return "attention"
    return "layer" if isinstance(module, QuantizedLayer) else None


@torch.no_grad()
def inner_layers(denoiser: nn.Module, unit: Unit, example: Captured) -> list[str]:
    """Layers of a unit whose output does not go straight into the unit's output.

    A layer's output y goes straight in if y + delta moves the unit's output by c delta, for
    random delta, whatever the order of the elements. Those are left out of a loss on inner
    layers because the loss on the unit's output has them already: the last convolution and the
    shortcut of a residual block, the output projection of an attention.

    Args:
        denoiser: in full precision.
        unit: one of its units.
        example: an input of the unit; its first row is used.

    """
    module = denoiser.get_submodule(unit.path)
    run = example.first(1).caller(module)
    before = run()
    return [
        path for path in unit.layers if not _straight(denoiser.get_submodule(path), run, before)
    ]


def _straight(layer: nn.Module, run, before: Tensor) -> bool:
    added = []

    def add(_, args, output: Tensor) -> Tensor:
        delta = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        added.append(delta.to(output) * output.abs().mean().clamp(min=1e-3))
        return output + added[-1]

    handle = layer.register_forward_hook(add)
    try:
        moved = (run() - before).flatten().sort().values
    finally:
        handle.remove()
    delta = added[-1].flatten().sort().values
    if delta.shape != moved.shape or not moved.any():
        return False
    return bool(torch.allclose(moved / moved.norm(), delta / delta.norm(), atol=1e-4))
