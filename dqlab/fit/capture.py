"""Inputs and outputs of modules inside a denoiser, read by hooks while it runs.

The run stops as soon as the last wanted module is done, so a module near the entrance costs
little. Inputs are copied when the module is entered, bit for bit what it receives.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from dqlab.errors import InvalidInputError
from dqlab.trajectory import States, take_rows

BATCH = 32
MEMORY = 512 * 2**20
"""Bytes of captured tensors kept at a time."""


@dataclass(frozen=True)
class Captured:
    """What one module was asked and answered on `rows` states.

    Attributes:
        rows: number of states.
        leaves: its arguments, flat: tensors with one or several rows per state, or constants.
        per_row: which of the leaves have rows.
        spec: how positional and keyword arguments are put together again.
        output: its answer, rows as in the leaves; None where only inputs were asked for.

    """

    rows: int
    leaves: list[Any]
    per_row: list[bool]
    spec: Any
    output: Tensor | None = None

    def take(self, rows: Tensor | slice) -> Captured:
        """The chosen states."""
        leaves = [
            take_rows(leaf, rows, self.rows) if own else leaf
            for leaf, own in zip(self.leaves, self.per_row, strict=True)
        ]
        output = None if self.output is None else take_rows(self.output, rows, self.rows)
        count = len(range(self.rows)[rows]) if isinstance(rows, slice) else len(rows)
        return replace(self, rows=count, leaves=leaves, output=output)

    def without_inputs(self) -> Captured:
        """The output alone, for where inputs need not be copied."""
        return replace(self, leaves=[], per_row=[])

    def first(self, rows: int) -> Captured:
        """The first so many states."""
        return self.take(slice(0, rows))

    def batches(self, size: int = BATCH) -> list[Captured]:
        """Consecutive pieces."""
        return [self.take(slice(i, i + size)) for i in range(0, self.rows, size)]

    def mixed(self, other: Captured, mix: Callable[[Tensor, Tensor], Tensor]) -> Captured:
        """`mix(mine, theirs)` of every floating-point input with rows; the rest is mine."""
        leaves = [
            mix(mine, theirs) if own and mine.is_floating_point() else mine
            for mine, theirs, own in zip(self.leaves, other.leaves, self.per_row, strict=True)
        ]
        return replace(self, leaves=leaves)

    def call(self, module: nn.Module) -> Tensor:
        """Ask `module`, which may be another one than these inputs are from."""
        args, kwargs = tree_unflatten(self.leaves, self.spec)
        return main_output(module(*args, **kwargs))

    def caller(self, module: nn.Module) -> Callable[[], Tensor]:
        """`call` later."""
        return lambda: self.call(module)


def main_output(output: Any) -> Tensor:
    """The tensor a module answers with; the first one where it answers with several."""
    return output if isinstance(output, Tensor) else tree_flatten(output)[0][0]


class _Stop(Exception):
    """The last wanted module is done."""


@dataclass
class _Recorder:
    """Hooks of one module; fills tensors that are as long as the whole set."""

    path: str
    total: int
    outputs: bool
    states: int = 0
    done: int = 0
    kept: Captured | None = None
    pending: list[Any] = field(default_factory=list)
    spec: Any = None

    def enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        leaves, self.spec = tree_flatten((args, kwargs))
        self.pending = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
        if not self.outputs:
            self.keep(None)

    def leave(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        self.keep(main_output(output))

    def keep(self, output: Tensor | None) -> None:
        rows = self.states
        if self.kept is None:
            own = [
                isinstance(x, Tensor) and x.ndim > 0 and len(x) % rows == 0 for x in self.pending
            ]
            leaves = [
                _whole(x, rows, self.total) if o else x
                for x, o in zip(self.pending, own, strict=True)
            ]
            whole = None if output is None else _whole(output, rows, self.total)
            self.kept = Captured(self.total, leaves, own, self.spec, whole)
        found = [*zip(self.kept.leaves, self.pending, self.kept.per_row, strict=True)]
        if output is not None:
            found.append((self.kept.output, output, True))
        for whole, part, own in found:
            if own:
                self.fill(whole, part)
        self.done += rows
        self.pending = []

    def fill(self, whole: Tensor, part: Tensor) -> None:
        if part.is_floating_point() and not bool(part.isfinite().all()):
            raise InvalidInputError(
                f"NaN or infinity reaches or leaves {self.path} on the calibration set. Check "
                "the weights before it and the set."
            )
        per_state = len(part) // self.states
        whole[self.done * per_state : self.done * per_state + len(part)] = part


def _whole(part: Tensor, rows: int, total: int) -> Tensor:
    """Room for the whole set in the part's memory format."""
    shape = (len(part) // rows * total, *part.shape[1:])
    last = part.ndim == 4 and part.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=layout)


@torch.no_grad()
def capture(
    model: nn.Module,
    paths: Sequence[str],
    states: States,
    *,
    outputs: bool = True,
    batch_size: int = BATCH,
) -> dict[str, Captured]:
    """Run `model` on every state, up to the last of `paths`, and keep what they saw.

    Args:
        model: a denoiser.
        paths: modules inside it, in execution order.
        states: what to ask it.
        outputs: keep answers too, not only inputs.
        batch_size: rows run together.

    Raises:
        InvalidInputError: if `states` is empty, or NaN or infinity passes a module, named.

    """
    states.check("calibration")
    model.eval()
    recorders = {path: _Recorder(path, len(states), outputs) for path in paths}
    handles = _hook(model, recorders, outputs)
    try:
        for part in states.batches(batch_size):
            for recorder in recorders.values():
                recorder.states = len(part)
            with contextlib.suppress(_Stop):
                part.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return {path: recorder.kept for path, recorder in recorders.items()}


def _hook(model: nn.Module, recorders: dict[str, _Recorder], outputs: bool) -> list:
    def stop(*_) -> None:
        raise _Stop

    handles = []
    for path, recorder in recorders.items():
        module = model.get_submodule(path)
        # First, so that what a hook of the module's own makes of its input is not kept: it
        # would be made a second time when the module is asked again.
        enter = module.register_forward_pre_hook(recorder.enter, with_kwargs=True, prepend=True)
        handles.append(enter)
        if outputs:
            handles.append(module.register_forward_hook(recorder.leave, with_kwargs=True))
    last = model.get_submodule(list(recorders)[-1])
    handles.append(
        last.register_forward_hook(stop) if outputs else last.register_forward_pre_hook(stop)
    )
    return handles


class Tape:
    """A model's inputs and outputs at every unit, read in as few runs as memory allows.

    For a model that does not change. Units must be asked for in execution order.
    """

    def __init__(
        self, model: nn.Module, paths: Sequence[str], states: States, memory: int = MEMORY
    ):
        self.model, self.paths, self.states, self.memory = model, list(paths), states, memory
        self.sizes: dict[str, int] | None = None
        self.kept: dict[str, Captured] = {}

    def __getitem__(self, path: str) -> Captured:
        if path not in self.kept:
            self.kept = {}
            self.kept = capture(self.model, self._window(path), self.states)
        return self.kept[path]

    def _window(self, path: str) -> list[str]:
        """The unit and those after it that fit into memory together; always at least one."""
        if self.sizes is None:
            self.sizes = row_bytes(capture(self.model, self.paths, self.states[:1]))
        window, used = [], 0
        for following in self.paths[self.paths.index(path) :]:
            used += self.sizes[following] * len(self.states)
            if window and used > self.memory:
                break
            window.append(following)
        return window


def row_bytes(captured: dict[str, Captured]) -> dict[str, int]:
    """Bytes per state of each module's captured tensors."""

    def size(c: Captured) -> int:
        tensors = [x for x, own in zip(c.leaves, c.per_row, strict=True) if own]
        tensors += [] if c.output is None else [c.output]
        return sum(x.numel() * x.element_size() for x in tensors) // c.rows

    return {path: size(c) for path, c in captured.items()}


def affordable(states: States, bytes_per_row: int, memory: int = MEMORY) -> States:
    """The set itself, or evenly spaced rows of it, as many as fit into memory; warns if so."""
    rows = max(1, memory // max(1, bytes_per_row))
    if len(states) <= rows:
        return states
    warnings.warn(
        f"{len(states)} calibration rows of {bytes_per_row} bytes do not fit into {memory} bytes: "
        f"{rows} evenly spaced ones are used.",
        stacklevel=2,
    )
    return states[torch.linspace(0, len(states) - 1, rows).round().long()]
