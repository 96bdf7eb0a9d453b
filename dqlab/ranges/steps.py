"""One observer per sampler step, for ranges that follow the timestep."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.formats import Format, Range
from dqlab.ranges.observers import Observer


class PerStep:
    """`steps` observers made by `make`; the range has a leading axis [T] over them.

    Pick from it with `Range.index`. State keys are those of the observers after "<step>.".
    """

    def __init__(self, make: Callable[[], Observer], steps: int) -> None:
        if steps < 1:
            raise InvalidInputError(f"PerStep needs at least 1 step, got {steps}")
        self.observers = [make() for _ in range(steps)]

    def update(self, x: Tensor, step: int | Tensor) -> None:
        """See a batch at one step, or an [N, ...] batch whose samples are at the steps [N].

        Raises InvalidInputError for a step outside 0..T-1 and for what `Observer.update` refuses.
        """
        if isinstance(step, int):
            self._observer(step).update(x)
            return
        if step.shape != x.shape[:1]:
            raise InvalidInputError(
                f"steps of shape {tuple(step.shape)} do not fit a batch of {tuple(x.shape[:1])}"
            )
        for one in step.unique().tolist():
            self._observer(one).update(x[step == one])

    def range(self, fmt: Format) -> Range:
        """Ranges of all steps, [T, ...]. Raises InvalidInputError if a step has seen nothing."""
        unseen = [t for t, observer in enumerate(self.observers) if not observer.batches]
        if unseen:
            raise InvalidInputError(
                f"{self.observers[0].name}: no calibration data at steps {unseen} of "
                f"{len(self.observers)}; calibrate on whole trajectories"
            )
        ranges = [observer.range(fmt) for observer in self.observers]
        return Range(
            torch.stack([r.scale for r in ranges]), torch.stack([r.zero_point for r in ranges])
        )

    def state_dict(self) -> dict[str, Tensor]:
        """States of all observers, as plain tensors."""
        return {
            f"{t}.{key}": value
            for t, observer in enumerate(self.observers)
            for key, value in observer.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a state. Raises InvalidInputError for one of another number of steps."""
        parts: dict[str, dict[str, Tensor]] = {str(t): {} for t in range(len(self.observers))}
        for key, value in state.items():
            step, _, field = key.partition(".")
            if step not in parts:
                raise InvalidInputError(
                    f"state has step {step!r}, but there are {len(parts)} steps here"
                )
            parts[step][field] = value
        for step, part in parts.items():
            self.observers[int(step)].load_state_dict(part)

    def _observer(self, step: int) -> Observer:
        if not 0 <= step < len(self.observers):
            raise InvalidInputError(
                f"step {step} is outside the calibrated steps 0..{len(self.observers) - 1}"
            )
        return self.observers[step]
