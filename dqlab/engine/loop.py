"""The one training loop: seeded, resumable after a kill, time- or step-budgeted.

Every random draw of step k comes from a generator seeded by (seed, stage, k), so a resumed run
continues exactly where an uninterrupted one would be.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dqlab.engine.ema import MovingAverage
from dqlab.engine.precision import PRECISIONS, autocast, choose_precision
from dqlab.engine.state import flatten_optimizer, load_state, restore_optimizer, save_state
from dqlab.engine.task import Progress, Stage, Task
from dqlab.errors import CheckpointError, DqlabError, InvalidInputError

STATE_FILE = "state.safetensors"


class TrainingDivergedError(DqlabError, ArithmeticError):
    """The loss became NaN or infinite."""


@dataclass
class Report:
    """What a finished run tells: per-stage steps and seconds, and the loss curve."""

    module: nn.Module
    """The moving average where the task asks for one, else the trained module."""
    precision: str
    stages: list[dict[str, Any]] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    """Optimiser steps of this sitting alone: 0 if a saved run was complete already."""


class Run:
    """One training job in progress. Use `train`; this class is its state."""

    def __init__(self, task: Task, seed: int, device: torch.device, precision: str):
        self.task, self.seed, self.device, self.precision = task, seed, device, precision
        self.average = MovingAverage(task.module, task.ema_decay) if task.ema_decay else None
        self.stage = self.step = 0
        self.seconds = 0.0
        self.updates = 0
        self.finished: list[dict[str, Any]] = []
        self.curve: list[dict[str, float]] = []
        self.reopened: list[int] = []
        self.before = 0
        self.optimizer: torch.optim.Optimizer | None = None

    def generator(self) -> torch.Generator:
        """The source of every random draw of the current step."""
        seed = (self.seed * 1_000_003 + self.stage) * 10_000_019 + self.step
        return torch.Generator(self.device).manual_seed(seed % 2**63)

    def begin_stage(self, stage: Stage) -> None:
        """Build the stage's optimiser and remember each group's full learning rate."""
        stage.start()
        self.optimizer = stage.optimizer(stage.parameters, lr=stage.lr)
        self.optimizer.zero_grad(set_to_none=True)  # an interrupted step may have left gradients
        for group in self.optimizer.param_groups:
            group["full_lr"] = group["lr"]

    def advance(self, stage: Stage) -> float:
        """One optimiser step; returns the loss."""
        progress = Progress(self.step, stage.budget.fraction(self.step, self.seconds))
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * stage.schedule(progress.fraction)
        loss = self.backward(self.precision, progress)
        if stage.clip_norm is not None:
            wanted = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(wanted, stage.clip_norm)
        with _whole():
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.average:
                self.average.update(self.task.module, self.updates)
            self.updates += 1
            self.step += 1
        return loss

    def backward(self, precision: str, progress: Progress) -> float:
        """Loss and gradients of the current step's batch."""
        with autocast(precision, self.device):
            loss = self.task.loss(self.task.batch(self.generator()), progress)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"The loss is {value} at step {self.step} of stage "
                f"{self.task.stages[self.stage].name!r}. Lower the learning rate, or check the "
                "training data for NaN and infinite values."
            )
        loss.backward()
        return value

    def time_step(self, precision: str) -> None:
        """A forward and backward pass that leaves no trace, for `choose_precision`."""
        self.backward(precision, Progress(0, 0.0))
        self.task.module.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that `load` needs, flat."""
        named = {f"model.{k}": v for k, v in self.task.module.state_dict().items()}
        if self.average:
            named |= {f"ema.{k}": v for k, v in self.average.module.state_dict().items()}
        moments = flatten_optimizer(self.optimizer) if self.optimizer else {}
        return named | {f"optim.{k}": v for k, v in moments.items()}

    def facts(self) -> dict[str, Any]:
        """The JSON half of the state."""
        names = ("seed", *_RESTORED, "reopened")
        return {"fingerprint": self.task.fingerprint} | {n: getattr(self, n) for n in names}

    def save(self, path: Path) -> None:
        """Write the whole state atomically."""
        save_state(path, self.tensors(), self.facts())

    def load(self, path: Path) -> None:
        """Continue from a saved state of the same task."""
        tensors, facts = load_state(path)
        wanted = {"fingerprint": self.task.fingerprint, "seed": self.seed}
        if found := {k: facts.get(k) for k in wanted if facts.get(k) != wanted[k]}:
            raise CheckpointError(
                f"{path} belongs to another run: it has {found}, this one {wanted}. "
                "Delete it (or pass fresh=True) to start again."
            )
        try:
            self._restore(tensors, facts)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} does not fit this run ({error}). Delete it (or pass fresh=True) to "
                "start again."
            ) from error

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        for name in _RESTORED:
            setattr(self, name, facts[name])
        self.reopened = facts.get("reopened", [])
        self.before = self.updates
        self._reopen()
        # Every stage begun so far begins again, then the saved numbers replace what it set.
        for stage in self.task.stages[: self.stage + (self.step > 0)]:
            self.begin_stage(stage)
        if self.step > 0:
            restore_optimizer(self.optimizer, _under("optim.", tensors))
        else:
            self.optimizer = None
        self.task.module.load_state_dict(_under("model.", tensors))
        if self.average:
            self.average.module.load_state_dict(_under("ema.", tensors))

    def _reopen(self) -> None:
        """Go on with the last stage of a finished run, if its budget has become larger.

        Its optimiser starts anew, since a finished run keeps no moments; its schedule goes on
        where the larger budget has it. Seconds are kept to a tenth, hence the margin.
        """
        stage = self.task.stages[-1]
        if self.stage < len(self.task.stages):
            return
        done = self.finished[-1]
        if stage.budget.fraction(done["steps"], done["seconds"] + 0.05) >= 1:
            return
        self.finished.pop()
        self.stage, self.step, self.seconds = self.stage - 1, done["steps"], done["seconds"]
        self.reopened = [*done.get("reopened", []), self.step]

    def close_stage(self, name: str) -> None:
        """Note what the current stage did and turn to the next."""
        done = {"name": name, "steps": self.step, "seconds": round(self.seconds, 1)}
        self.finished.append(done | ({"reopened": self.reopened} if self.reopened else {}))
        self.stage, self.step, self.seconds = self.stage + 1, 0, 0.0
        self.optimizer, self.reopened = None, []

    def report(self) -> Report:
        """What the caller gets."""
        module = self.average.module if self.average else self.task.module
        sitting = self.updates - self.before
        return Report(module, self.precision, self.finished, self.curve, sitting)


_RESTORED = ("precision", "stage", "step", "seconds", "updates", "finished", "curve")


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Ctrl-C waits until the block is done: a saved state never holds half a step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def train(
    task: Task,
    *,
    seed: int,
    run_dir: Path | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
    fresh: bool = False,
    save_every: float = 60.0,
    progress: bool = True,
    on_save: Callable[[nn.Module], None] | None = None,
) -> Report:
    """Run every stage of `task`, resuming from `run_dir` where a saved state is found there.

    The last stage of a run that is over goes on if its budget is now larger.

    Args:
        task: what to train.
        seed: names all random draws.
        run_dir: folder of the resumable state; None keeps no state.
        device: where to train; default: where the module is.
        precision: "fp32", "bf16", or "auto" to time one step of each.
        fresh: ignore and replace a saved state.
        save_every: seconds between saved states.
        progress: show a progress bar.
        on_save: called with the current (averaged) module after each saved state.

    Raises:
        TrainingDivergedError: if the loss stops being finite; the last saved state stays.
        CheckpointError: if `run_dir` holds the state of another task or precision, or a damaged
            one.

    """
    if precision not in (*PRECISIONS, "auto"):
        raise InvalidInputError(f"precision={precision!r}; choose one of {PRECISIONS} or 'auto'.")
    device = torch.device(device or next(task.module.parameters()).device)
    task.module.to(device).train()
    run = Run(task, seed, device, precision)
    path = run_dir / STATE_FILE if run_dir else None
    if path and path.is_file() and not fresh:
        run.load(path)
        if precision not in ("auto", run.precision):
            raise CheckpointError(
                f"{path} holds a run in {run.precision}, which cannot go on in {precision}. Leave "
                "precision out, or pass fresh=True to start again."
            )
    elif precision == "auto":
        run.begin_stage(task.stages[0])
        run.precision = choose_precision(run.time_step, device)
    saver = _Saver(run, path, save_every, on_save)
    try:
        while run.stage < len(task.stages):
            _run_stage(run, saver, progress)
    except KeyboardInterrupt:
        saver.save()
        raise
    return run.report()


class _Saver:
    """Saves the run every so many seconds."""

    def __init__(self, run: Run, path: Path | None, every: float, on_save):
        self.run, self.path, self.every, self.on_save = run, path, every, on_save
        self.last = time.perf_counter()

    def save(self) -> None:
        if self.path is not None:
            self.run.save(self.path)
            if self.on_save:
                self.on_save(self.run.report().module)
        self.last = time.perf_counter()

    def maybe(self) -> None:
        if self.path is not None and time.perf_counter() - self.last >= self.every:
            self.save()


def _run_stage(run: Run, saver: _Saver, show: bool) -> None:
    """Advance until the current stage's budget is used up, then move to the next."""
    stage = run.task.stages[run.stage]
    if run.optimizer is None:
        run.begin_stage(stage)
    smooth = _Smooth()
    # What an earlier sitting did took none of this one's time.
    done = _thousandths(run)
    with tqdm(total=1000, initial=done, desc=stage.name, disable=not show, bar_format=_BAR) as bar:
        while stage.budget.fraction(run.step, run.seconds) < 1:
            start = time.perf_counter()
            smooth.add(run.advance(stage))
            run.seconds += time.perf_counter() - start
            if run.step % 50 == 0:
                _record(run, smooth, bar)
            saver.maybe()
    with _whole():
        run.close_stage(stage.name)
    saver.save()


_BAR = "{desc}: {percentage:5.1f} %|{bar}| {elapsed}<{remaining} {postfix}"


class _Smooth:
    """Mean of the losses since the last reading."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, loss: float) -> None:
        self.total, self.count = self.total + loss, self.count + 1

    def take(self) -> float:
        mean, self.total, self.count = self.total / self.count, 0.0, 0
        return mean


def _record(run: Run, smooth: _Smooth, bar: tqdm) -> None:
    """Add a point to the loss curve and show it."""
    loss = smooth.take()
    point = {"step": run.updates, "seconds": round(run.seconds, 1), "loss": round(loss, 6)}
    run.curve.append(point)
    bar.n = _thousandths(run)
    bar.set_postfix_str(f"step {run.updates}, loss {loss:.4f}, {run.precision}")


def _thousandths(run: Run) -> int:
    """The part of the current stage's budget that is used up."""
    return round(1000 * run.task.stages[run.stage].budget.fraction(run.step, run.seconds))
