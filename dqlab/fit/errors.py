"""How far quantized units are from their originals, unit by unit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dqlab.fit.capture import Captured, Tape, capture
from dqlab.fit.units import Unit
from dqlab.reference.brecq import block_loss
from dqlab.trajectory import States


@torch.no_grad()
def mean_error(module: nn.Module, inputs: Captured, target: Captured, p: float = 2.0) -> float:
    """`block_loss` of `module` on all rows of `inputs`, against the outputs in `target`."""
    total = 0.0
    for part, goal in zip(inputs.batches(), target.batches(), strict=True):
        total += float(block_loss(part.call(module), goal.output, p)) * part.rows
    return total / inputs.rows


def unit_errors(
    model: nn.Module,
    teacher: nn.Module,
    units: Sequence[Unit],
    states: States,
    source: nn.Module | None = None,
) -> dict[str, float]:
    """Squared error of every unit of `model` against the full-precision outputs.

    Args:
        model: a quantized denoiser.
        teacher: the full-precision one.
        units: what to measure.
        states: held-out states.
        source: the network whose predecessors feed the units; default `teacher`, so that every
            unit is judged alone.

    Returns:
        Path -> sum over dimension 1, mean over the rest, of the squared error.

    """
    tape, errors = Tape(teacher, [unit.path for unit in units], states), {}
    for unit in units:
        full = tape[unit.path]
        fed = full if source is None else _inputs(source, unit, states)
        errors[unit.path] = mean_error(model.get_submodule(unit.path), fed, full)
    return errors


def _inputs(source: nn.Module, unit: Unit, states: States) -> Captured:
    return capture(source, [unit.path], states, outputs=False)[unit.path]
