"""What a training job is: batches, a loss, parameters, and how long each stage may take."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError


@dataclass(frozen=True)
class Budget:
    """How long a stage runs: a number of optimiser steps, or minutes of wall-clock training.

    A step budget is reproducible to the byte; a time budget adapts to the machine.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise InvalidInputError("A budget needs either steps= or minutes=, not both or none.")
        if not (self.steps if self.minutes is None else self.minutes) > 0:
            raise InvalidInputError(f"A budget must be positive; got {self}.")

    def fraction(self, step: int, seconds: float) -> float:
        """Share of the budget used, in [0, 1], after `step` steps and `seconds` of training."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        return min(1.0, seconds / (60.0 * self.minutes))

    def share(self, part: float) -> "Budget":
        """A part of it, for one of several stages; never less than one step."""
        if self.steps is not None:
            return Budget(steps=max(1, round(part * self.steps)))
        return Budget(minutes=part * self.minutes)


@dataclass(frozen=True)
class Progress:
    """Where a stage stands: `step` counts from 0, `fraction` runs from 0 to 1."""

    step: int
    fraction: float


def constant(fraction: float) -> float:
    """Learning-rate factor 1 throughout."""
    return 1.0


def cosine(warmup: float = 0.0) -> Callable[[float], float]:
    """Learning-rate factor: linear warm-up over `warmup`, then half a cosine down to 0."""

    def factor(fraction: float) -> float:
        if fraction < warmup:
            return (fraction + 1e-3) / (warmup + 1e-3)
        return 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup)))

    return factor


@dataclass
class Stage:
    """A stretch of training with its own parameters, optimiser and schedule.

    Attributes:
        budget: how long it runs.
        parameters: tensors, or optimiser parameter groups with their own `lr`.
        lr: learning rate at schedule factor 1, for groups that name none.
        schedule: maps the stage's fraction to a factor on every group's learning rate.
        optimizer: builds the optimiser from groups and `lr`.
        clip_norm: gradients are clipped to this global norm; None leaves them.
        name: in progress bars, reports and errors.
        start: called when the stage begins. A resumed run calls it again for every stage begun
            so far, in order, before the saved numbers are loaded.

    """

    budget: Budget
    parameters: Sequence[Tensor] | Sequence[dict[str, Any]]
    lr: float
    schedule: Callable[[float], float] = constant
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    clip_norm: float | None = None
    name: str = "train"
    start: Callable[[], None] = field(default=lambda: None)


class Task(Protocol):
    """What the engine needs to know. A method or recipe gives this, never its own loop."""

    module: nn.Module
    """Everything that is trained; saved, resumed and averaged as a whole."""
    stages: Sequence[Stage]
    ema_decay: float | None
    fingerprint: str
    """Names the recipe and its settings: a saved state of another fingerprint is refused."""

    def batch(self, generator: torch.Generator) -> Any:
        """One batch, drawn only from `generator`, noise and timesteps included."""

    def loss(self, batch: Any, progress: Progress) -> Tensor:
        """A scalar to minimise; deterministic given the batch."""
