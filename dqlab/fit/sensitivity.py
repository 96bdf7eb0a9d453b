"""How much the denoiser's error cares about each element of a unit's output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.fit.capture import BATCH, main_output
from dqlab.reference.brecq import damped
from dqlab.trajectory import States


def output_gradients(
    student: nn.Module, path: str, states: States, batch_size: int = BATCH
) -> Tensor:
    """|g| + 1 with g = d ||eps_q - eps||^2 / d z at the output z of module `path`, per row.

    BRECQ's Fisher diagonal is g^2 (arXiv 2102.05426, section 3.3). A denoiser has no logits, so
    the task loss is the squared distance of its answer to the full-precision one, `states.output`.

    Returns:
        Tensor shaped as the module's outputs on all states.

    Raises:
        InvalidInputError: if the student answers exactly as the original: then every gradient is
            zero.

    """
    found: list[Tensor] = []

    def watch(module: nn.Module, args: tuple, output):
        z = main_output(output).detach().requires_grad_(True)
        found.append(z)
        return z if isinstance(output, Tensor) else (z, *output[1:])

    handle = student.get_submodule(path).register_forward_hook(watch)
    gradients = []
    try:
        for part in states.batches(batch_size):
            loss = (part.call(student) - part.output).square().sum()
            gradients.append(torch.autograd.grad(loss, found.pop())[0])
    finally:
        handle.remove()
    g = torch.cat(gradients)
    if not bool(g.any()):
        raise InvalidInputError(
            f"The quantized network answers exactly as the original, so nothing at {path} is "
            "sensitive. Set weight ranges first."
        )
    return damped(g)
