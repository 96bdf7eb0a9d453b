"""Activation step sizes as parameters (LSQ), and activations dropped at random (QDrop)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dqlab.formats import lsq_grad_scale
from dqlab.formats.base import SMALLEST_SCALE
from dqlab.layers import Quantizer, quantizers
from dqlab.reference.qdrop import mix


def activation_quantizers(module: nn.Module) -> list[Quantizer]:
    """Those of a module that quantize something now."""
    return [
        q
        for q in quantizers(module).values()
        if not q.site.split("[")[0].endswith(".weight")
        and q.format is not None
        and q.scale is not None
        and q.active
    ]


LEARNED_BITS = 8


def learned_sites(sites: Sequence[Quantizer]) -> list[Quantizer]:
    """Those whose step sizes are learned: of at most 8 bits.

    Q-Diffusion's released code leaves softmax outputs of 16 bits alone. Their step is 1 / 65535,
    and a single step of Adam at its learning rate of 4e-4 would make it 27 times that.
    """
    return [q for q in sites if q.format.bits <= LEARNED_BITS]


@contextlib.contextmanager
def learnable_steps(sites: Sequence[Quantizer], grad_scale: bool) -> Iterator[list[Tensor]]:
    """While inside, every site's scale is a leaf that takes gradients; positive afterwards."""
    with contextlib.ExitStack() as stack:
        for quantizer in sites:
            quantizer.scale = quantizer.scale.detach().clone().requires_grad_(True)
            if grad_scale:
                stack.enter_context(_scaled_gradient(quantizer))
        try:
            yield [quantizer.scale for quantizer in sites]
        finally:
            for quantizer in sites:
                quantizer.scale = quantizer.scale.detach().abs().clamp(min=SMALLEST_SCALE)


@contextlib.contextmanager
def _scaled_gradient(quantizer: Quantizer) -> Iterator[None]:
    factor = [1.0]

    def see(x: Tensor) -> None:
        factor[0] = lsq_grad_scale(x, quantizer.range, quantizer.format, batch=True)

    handle = quantizer.scale.register_hook(lambda grad: grad * factor[0])
    quantizer.taps.append(see)
    try:
        yield
    finally:
        quantizer.taps.remove(see)
        handle.remove()


@contextlib.contextmanager
def dropped(sites: Sequence[Quantizer], share: float, seed: int) -> Iterator[None]:
    """While inside, a random share of the elements at every site stays unquantized."""
    handles = []
    if share:
        for index, quantizer in enumerate(sites):
            device = quantizer.scale.device
            generator = torch.Generator(device).manual_seed(seed + index)
            handles.append(quantizer.register_forward_hook(_drop(1 - share, generator)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _drop(kept: float, generator: torch.Generator):
    return lambda module, args, output: mix(output, args[0], kept, generator)
