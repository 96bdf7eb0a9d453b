"""Ranges over calibration batches: observers that see one batch at a time and keep little.

class     keeps                       its range
MinMax    lowest and highest          min-max of all batches
First     bounds of the first batch   those (BRECQ, Q-Diffusion)
Ema       running bounds              r <- m r + (1 - m) r_batch, m = 0.9 (PTQ4DM, EDA-DM)
Running   running bounds              the same with m = 0.95 and, from the second batch on, min-max
                                      (Q-Diffusion's running statistics)
Mean      running bounds              mean over batches (QDrop's averaging observers)
Pooled    a sample of all values      found on the pooled values, e.g. a percentile

`rule`, where there is one, is a key or a function of `dqlab.ranges.rules`. First, Ema, Running and
Mean apply it to each batch; if it is a search they need the format at the start. They show it at
most BATCH_VALUES values of a batch, Pooled keeps `capacity` values; both draw uniformly with a
generator of their own and always keep each row's lowest and highest value.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.formats import Format, Range
from dqlab.ranges.minmax import Bounds, extremes
from dqlab.ranges.rows import Axis, rows_of, thinned
from dqlab.ranges.rules import Rule, check_format, min_max_rule, needs_format, rule_of

BATCH_VALUES = 2**16  # per row
POOL_VALUES = 2**14  # per row: 128 KiB, for one observer at every site and step


class Observer:
    """What all observers do: `update` with batches, then ask for a `range`.

    `axis` is that of `dqlab.ranges.rows`; `name` is the tensor's name in errors.
    """

    fields: ClassVar[tuple[str, ...]]

    def __init__(self, axis: Axis = None, name: str = "tensor") -> None:
        self.axis, self.name = axis, name
        self.batches = 0
        self.shape: tuple[int, ...] = ()

    def update(self, x: Tensor) -> None:
        """See one batch. Raises InvalidInputError if it is empty or holds NaN or infinity."""
        rows = rows_of(x, self.axis, name=self.name)
        if self.batches and rows.shape != self.shape:
            raise InvalidInputError(
                f"{self.name}: a batch of shape {tuple(x.shape)} has ranges of shape "
                f"{rows.shape}, but earlier batches had {self.shape}"
            )
        self.shape = rows.shape
        self._see(rows.values)
        self.batches += 1

    def range(self, fmt: Format) -> Range:
        """Range for `fmt` of all batches so far. Raises InvalidInputError if there were none."""
        if not self.batches:
            raise InvalidInputError(
                f"{self.name}: no calibration data seen, so there is no range; "
                "run calibration batches through the observer first"
            )
        low, high = self._bounds(fmt)
        return fmt.params(low.reshape(self.shape), high.reshape(self.shape))

    def state_dict(self) -> dict[str, Tensor]:
        """All that was seen so far, as plain tensors."""
        state = {
            "batches": torch.tensor(self.batches),
            "shape": torch.tensor(self.shape, dtype=torch.int64),
        }
        return state | {f: getattr(self, f).clone() for f in self.fields if self.batches}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a state. Raises InvalidInputError for that of another kind of observer."""
        seen = int(state.get("batches", 0))
        missing = {"batches", "shape", *(self.fields if seen else ())} - set(state)
        if missing:
            raise InvalidInputError(
                f"{self.name}: not a state of {type(self).__name__}: "
                f"no {', '.join(sorted(missing))}"
            )
        self.batches, self.shape = seen, tuple(state["shape"].tolist())
        for field in self.fields if seen else ():
            setattr(self, field, state[field].clone())

    def _see(self, rows: Tensor) -> None:
        raise NotImplementedError

    def _bounds(self, fmt: Format) -> Bounds:
        raise NotImplementedError


class MinMax(Observer):
    """Lowest and highest value of all batches."""

    fields = ("low", "high")

    def _see(self, rows: Tensor) -> None:
        low, high = extremes(rows)
        if self.batches:
            low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)
        self.low, self.high = low, high

    def _bounds(self, fmt: Format) -> Bounds:
        return self.low, self.high


class First(Observer):
    """Bounds that `rule` finds on the first batch; later batches are checked and ignored."""

    fields = ("low", "high", "draws")

    def __init__(
        self,
        rule: str | Rule = "min_max",
        fmt: Format | None = None,
        axis: Axis = None,
        name: str = "tensor",
        seed: int = 0,
    ) -> None:
        super().__init__(axis, name)
        self.rule, self.fmt = rule_of(rule), fmt
        check_format(self.rule, fmt, name)
        self.draws = torch.Generator().manual_seed(seed).get_state()

    def _see(self, rows: Tensor) -> None:
        if not self.batches:
            self.low, self.high = self._find(rows, self.rule)

    def _find(self, rows: Tensor, rule: Rule) -> Bounds:
        if rule is not min_max_rule:
            generator = torch.Generator()
            generator.set_state(self.draws)
            rows = thinned(rows, BATCH_VALUES, generator)
            self.draws = generator.get_state()
        return rule(rows, self.fmt)

    def _bounds(self, fmt: Format) -> Bounds:
        if needs_format(self.rule) and fmt != self.fmt:
            raise InvalidInputError(
                f"{self.name}: bounds were searched for {self.fmt}, not for {fmt}; "
                f"calibrate again with fmt={fmt}"
            )
        return self.low, self.high


class Mean(First):
    """Mean over batches of the bounds that `rule` finds on each."""

    def _see(self, rows: Tensor) -> None:
        rule = self._later_rule() if self.batches else self.rule
        low, high = self._find(rows, rule)
        if self.batches:
            low, high = low.lerp(self.low, self._kept()), high.lerp(self.high, self._kept())
        self.low, self.high = low, high

    def _later_rule(self) -> Rule:
        return self.rule

    def _kept(self) -> float:
        """Weight of the past batches against the new one."""
        return self.batches / (self.batches + 1)


class Ema(Mean):
    """Moving average of the bounds that `rule` finds on each batch; the first batch starts it.

    After k equal updates from a towards b it stands at b + (a - b) momentum^k.
    """

    def __init__(
        self,
        rule: str | Rule = "min_max",
        fmt: Format | None = None,
        axis: Axis = None,
        name: str = "tensor",
        seed: int = 0,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(rule, fmt, axis, name, seed)
        if not 0 <= momentum <= 1:
            raise InvalidInputError(f"{name}: momentum must be in [0, 1], got {momentum}")
        self.momentum = momentum

    def _kept(self) -> float:
        return self.momentum


class Running(Ema):
    """Moving average that starts at what `rule` finds and follows the later batches' min-max."""

    def __init__(
        self,
        rule: str | Rule = "min_max",
        fmt: Format | None = None,
        axis: Axis = None,
        name: str = "tensor",
        seed: int = 0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(rule, fmt, axis, name, seed, momentum)

    def _later_rule(self) -> Rule:
        return min_max_rule


class Pooled(MinMax):
    """Bounds that `rule` finds on a uniform sample, without replacement, of all batches.

    Every column of the rows gets a random key and the largest `capacity` keys stay (reservoir
    sampling by keys), so that memory does not grow with the number of batches.
    """

    fields = ("low", "high", "sample", "keys", "draws", "seen")

    def __init__(
        self,
        rule: str | Rule = "percentile",
        axis: Axis = None,
        name: str = "tensor",
        seed: int = 0,
        capacity: int = POOL_VALUES,
    ) -> None:
        super().__init__(axis, name)
        if capacity < 1:
            raise InvalidInputError(f"{name}: capacity must be at least 1 value, got {capacity}")
        self.rule, self.capacity = rule_of(rule), capacity
        self.draws = torch.Generator().manual_seed(seed).get_state()
        self.seen = torch.tensor(0)

    def _see(self, rows: Tensor) -> None:
        super()._see(rows)
        generator = torch.Generator()
        generator.set_state(self.draws)
        keys = torch.rand(rows.shape[1], generator=generator)
        self.draws = generator.get_state()
        self.seen = self.seen + rows.shape[1]
        if self.batches:
            rows, keys = torch.cat([self.sample, rows], 1), torch.cat([self.keys, keys])
        self.keys, index = keys.topk(min(self.capacity, len(keys)))
        self.sample = rows[:, index.to(rows.device)]

    def _bounds(self, fmt: Format) -> Bounds:
        rows = self.sample
        if self.seen > rows.shape[1]:
            rows = torch.cat([rows, torch.stack([self.low, self.high], 1)], 1)
        return self.rule(rows, fmt)
