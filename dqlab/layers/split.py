"""Sites made of parts: one quantizer for each piece of a channel concatenation.

A layer that reads `cat([x1, x2])` can quantize x1 and x2, and the weight's matching input
channels, each with a range of its own (Q-Diffusion, Li et al., ICCV 2023, arXiv 2302.04304):

    Q(x) Q(W) = Q1(x1) Q1(W1) + Q2(x2) Q2(W2)

Simulated as one product of the quantized pieces joined again, which is the same sum. A layer
that is not split never runs any of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dqlab.errors import InvalidInputError
from dqlab.formats import Format, Range
from dqlab.layers.context import StepContext
from dqlab.layers.quantizer import Quantizer

MARK = "channel_parts"
"""Attribute of a plain layer that says how `wrap_layer` shall split it."""


class SplitQuantizer(nn.Module):
    """Quantizers `site[0]`, `site[1]`, ... on consecutive pieces of a tensor's dimension `dim`."""

    def __init__(self, site: str, context: StepContext, sizes: Sequence[int], dim: int, ndim: int):
        super().__init__()
        self.site, self.sizes, self.dim, self.ndim = site, tuple(sizes), dim, ndim
        self.parts = nn.ModuleList(
            Quantizer(f"{site}[{i}]", context) for i in range(len(self.sizes))
        )

    def pieces(self, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
        """Every part's quantizer beside its piece of `x`.

        Raises:
            InvalidInputError: if `x` has another number of channels than the parts together.

        """
        if x.shape[self.dim] != sum(self.sizes):
            raise InvalidInputError(
                f"{self.site} is split into {self.sizes} channels, but meets "
                f"{x.shape[self.dim]}. Split it again for this model."
            )
        return list(zip(self.parts, x.split(self.sizes, self.dim), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Quantize the pieces and join them; same shape and dtype."""
        return torch.cat([part(piece) for part, piece in self.pieces(x)], self.dim)

    @property
    def format(self) -> Format | None:
        """The one format of all parts.

        Raises:
            InvalidInputError: if they differ, for then no single format describes the tensor.

        """
        formats = {part.format for part in self.parts}
        if len(formats) > 1:
            raise InvalidInputError(
                f"The parts of {self.site} have different formats ({formats}); give them one."
            )
        return formats.pop()

    @property
    def range(self) -> Range | None:
        """The parts' ranges side by side, one entry per channel; None before all are set."""
        if any(part.scale is None for part in self.parts):
            return None
        return Range(self._joined("scale"), self._joined("zero_point"))

    def _joined(self, name: str) -> Tensor:
        spread = []
        for part, size in zip(self.parts, self.sizes, strict=True):
            found = getattr(part, name)
            found = found.reshape([1] * self.ndim) if found.ndim == 0 else found
            shape = list(found.shape)
            shape[self.dim] = size
            spread.append(found.expand(shape))
        return torch.cat(spread, self.dim)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Load the parts too: a layer asks for its weight's range before torch gets to them."""
        for index, part in enumerate(self.parts):
            part._load_from_state_dict(state_dict, f"{prefix}parts.{index}.", *args)
        super()._load_from_state_dict(state_dict, prefix, *args)


def split_layer(layer: nn.Module, sizes: Sequence[int], path: str = "layer") -> None:
    """Say that a plain layer's input is a concatenation of `sizes` channels, before wrapping.

    Parts of no channel do not count; a single part leaves the layer as it is.

    Raises:
        InvalidInputError: if the sizes do not add up to the layer's input channels, or it is a
            grouped convolution, whose weight has no such parts.

    """
    sizes = tuple(int(size) for size in sizes if size != 0)
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    if sum(sizes) != channels or min(sizes, default=0) < 0:
        raise InvalidInputError(
            f"{path} reads {channels} channels; it cannot be split into {sizes}."
        )
    if getattr(layer, "groups", 1) != 1:
        raise InvalidInputError(f"{path} is a grouped convolution and cannot be split.")
    if len(sizes) > 1:
        setattr(layer, MARK, sizes)


def concatenations(model: nn.Module, run: Callable[[], object]) -> dict[str, tuple[int, ...]]:
    """Layers that read a channel concatenation as it is, and the channels of its pieces.

    Found by running `run` (one forward of `model`) once. Only feature maps and token sequences
    count, not vectors such as the sine and cosine halves of a timestep's embedding. Layers that
    read a concatenation after a norm or activation are not among them either.

    Raises:
        InvalidInputError: if a layer runs twice and its concatenations have different pieces.

    """
    found: dict[str, tuple[int, ...]] = {}
    with torch.no_grad(), Concatenations() as watch:
        handles = [
            module.register_forward_pre_hook(_reader(found, watch, path))
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        ]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
    return found


def _reader(found: dict, watch: Concatenations, path: str) -> Callable:
    def read(layer: nn.Module, args: tuple) -> None:
        if not args or (entry := watch.made.get(id(args[0]))) is None:
            return
        result, dim, sizes = entry
        channel = result.ndim - 1 if isinstance(layer, nn.Linear) else 1
        if result.ndim < 3 or dim % result.ndim != channel:
            return
        if found.setdefault(path, sizes) != sizes:
            raise InvalidInputError(
                f"{path} read pieces of {found[path]} channels and then of {sizes}; a layer can "
                "only be split one way."
            )

    return read


class Concatenations(TorchFunctionMode):
    """While active, keeps the results of torch.cat in `made`, by identity.

    They are kept alive, so that no later tensor takes an identity over. Each comes with the
    dimension and the sizes of the parts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[Tensor, int, tuple[int, ...]]] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.cat, torch.concat, torch.concatenate):
            named = dict(zip(("tensors", "dim"), args, strict=False)) | (kwargs or {})
            dim = named.get("dim", named.get("axis", 0))
            sizes = tuple(t.shape[dim] for t in named["tensors"])
            self.made[id(result)] = (result, dim, sizes)
        return result
