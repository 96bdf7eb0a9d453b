"""Block reconstruction: fit one unit after another to its full-precision output.

    minimise  l(z_hat, z) + lambda_m sum over inner layers l(y_hat, y) + f_reg

over the rounding of the unit's weights, its activation step sizes, or both, where z is the
unit's output in the full-precision network and z_hat its quantized answer on the inputs that
`Settings.quantized_share` names (BRECQ, Li et al., ICLR 2021, arXiv 2102.05426; QDrop, Wei et
al., ICLR 2022, arXiv 2203.05740).
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dqlab.engine import Budget, Progress, Stage, TrainingDivergedError, constant, cosine, train
from dqlab.fit.adaround import SoftRounding, harden, soften
from dqlab.fit.capture import MEMORY, Captured, Tape, affordable, capture, row_bytes
from dqlab.fit.errors import mean_error
from dqlab.fit.profiles import Settings
from dqlab.fit.resume import KeptUnits
from dqlab.fit.sensitivity import output_gradients
from dqlab.fit.steps import activation_quantizers, dropped, learnable_steps, learned_sites
from dqlab.fit.units import Unit, inner_layers
from dqlab.layers import Quantizer
from dqlab.reference.adaround import beta_at
from dqlab.reference.brecq import block_loss, fisher_diagonal
from dqlab.reference.eda_dm import fine_grained_loss
from dqlab.reference.qdrop import mix
from dqlab.trajectory import States


@dataclass(frozen=True)
class UnitReport:
    """What fitting one unit did to its error on the calibration rows.

    Attributes:
        path, kind: the unit's.
        before: error at the start: nearest rounding, step sizes as they were set.
        soft: error at the end of training, rounding not yet decided.
        after: error with rounding decided.
        settled: share of rounding variables that training itself had decided; 1 without any.
        kept: False if learned step sizes were worse than the first ones and were dropped.
        seconds: for this unit, captures included.

    """

    path: str
    kind: str
    before: float
    soft: float
    after: float
    settled: float
    kept: bool
    seconds: float


@dataclass(frozen=True)
class Batch:
    """Rows of one step: the unit's inputs, the full-precision run of it, a seed for dropping."""

    inputs: Captured
    full: Captured
    weight: Tensor | None
    seed: int


@dataclass
class Reconstruction:
    """One unit's fit, as the training engine sees it."""

    unit: Unit
    student: nn.Module
    teacher: nn.Module
    quantized: Captured | None
    full: Captured
    settings: Settings
    soft: list[SoftRounding]
    sites: list[Quantizer]
    steps: list[Tensor]
    sensitivity: Tensor | None = None
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        s = self.settings
        # Only what is learned: the engine puts this module into training mode, and dropout
        # inside the unit must stay off.
        self.module = nn.ModuleList([*self.soft, *self.sites])
        groups = []
        if self.soft:
            groups.append({"params": [x.alpha for x in self.soft], "lr": s.rounding_lr})
        if self.steps:
            groups.append({"params": self.steps, "lr": s.step_lr})
        schedule = cosine() if s.cosine else constant
        adam = partial(torch.optim.Adam, fused=True)
        budget = Budget(steps=s.iterations)
        self.stages = [Stage(budget, groups, 0.0, schedule, adam, name=self.unit.path)]
        self.fingerprint = f"{self.unit.path} {s}"
        self.inner: list[str] = []
        if s.layer_weight:
            self.inner = inner_layers(self.teacher, self.unit, self.full)
        only_output = s.quantized_share == 1 and not self.inner
        self.target = self.full.without_inputs() if only_output else self.full

    def batch(self, generator: torch.Generator) -> Batch:
        """Random rows, their inputs mixed as the settings say."""
        rows = torch.randperm(self.full.rows, generator=generator)[: self.settings.batch]
        full = inputs = self.target.take(rows)
        if self.quantized is not None:
            inputs = self.quantized.take(rows)
            if self.settings.quantized_share < 1:
                share = partial(mix, share=self.settings.quantized_share, generator=generator)
                inputs = inputs.mixed(full, share)
        weight = None if self.sensitivity is None else self.sensitivity[rows]
        seed = int(torch.randint(2**40, (1,), generator=generator))
        return Batch(inputs, full, weight, seed)

    def loss(self, batch: Batch, progress: Progress) -> Tensor:
        """Reconstruction error plus regulariser."""
        with dropped(self.sites, self.settings.drop, batch.seed):
            error = self.error(batch)
        beta = beta_at(progress.step + 1, self.settings.iterations)
        if not self.settings.lam or beta is None:
            return error
        return error + sum(x.penalty(beta, self.settings.lam) for x in self.soft)

    def error(self, batch: Batch) -> Tensor:
        """The part of the loss that compares outputs."""
        s, unit = self.settings, self.student.get_submodule(self.unit.path)
        if not self.inner:
            z_hat = batch.inputs.call(unit)
            if batch.weight is not None:
                return fisher_diagonal(z_hat, batch.full.output, batch.weight)
            return block_loss(z_hat, batch.full.output, s.p)
        with outputs_of(self.student, self.inner) as y_hat:
            z_hat = batch.inputs.call(unit)
        with torch.no_grad(), outputs_of(self.teacher, self.inner) as y:
            batch.full.call(self.teacher.get_submodule(self.unit.path))
        return fine_grained_loss(z_hat, batch.full.output, y_hat, y, s.layer_weight, s.p)


@contextlib.contextmanager
def outputs_of(model: nn.Module, layers: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collects the layers' outputs, in the order they run, while inside."""
    seen: list[Tensor] = []
    handles = [
        model.get_submodule(path).register_forward_hook(lambda _, args, y: seen.append(y))
        for path in layers
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def reconstruct(
    student: nn.Module,
    teacher: nn.Module,
    unit: Unit,
    full: Captured,
    states: States,
    settings: Settings,
    seed: int,
) -> UnitReport | None:
    """Fit one unit of `student` in place; None if it has nothing to learn.

    Args:
        student: wrapped denoiser, ranges set; units before this one are fitted already.
        teacher: the same in full precision.
        unit: which one.
        full: the teacher's inputs and outputs there, on `states`.
        states: calibration rows.
        settings: what is learned, how long, against which inputs.
        seed: names the draws.

    Raises:
        TrainingDivergedError: naming the unit, if the loss stops being finite.

    """
    started, module = time.perf_counter(), student.get_submodule(unit.path)
    sites = activation_quantizers(module)
    learned = learned_sites(sites) if settings.step_lr is not None else []
    rounds = settings.rounding_lr is not None and _formatted(student, unit)
    if not (learned or rounds):
        return None
    quantized = sensitivity = None
    if settings.quantized_share:
        quantized = capture(student, [unit.path], states, outputs=False)[unit.path]
    if settings.fisher:
        sensitivity = output_gradients(student, unit.path, states)
    judge = partial(mean_error, module, quantized or full, full, settings.p)
    before, first = judge(), [q.scale for q in learned]
    placed = soften(map(student.get_submodule, unit.layers)) if rounds else []
    soft = [x for _, _, x in placed]
    with learnable_steps(learned, settings.grad_scale) as steps:
        task = Reconstruction(
            unit, student, teacher, quantized, full, settings, soft, sites, steps, sensitivity
        )
        _train(task, seed, full.output.device)
    relaxed, settled = judge(), _settled(soft)
    harden(placed)
    after = judge() if soft else relaxed
    if not (kept := bool(soft) or after <= before):
        after = before
        for quantizer, scale in zip(learned, first, strict=True):
            quantizer.scale = scale
    seconds = time.perf_counter() - started
    return UnitReport(unit.path, unit.kind, before, relaxed, after, settled, kept, seconds)


def _settled(soft: Sequence[SoftRounding]) -> float:
    """Share of all rounding variables that are decided; 1 where there is none."""
    count = sum(x.alpha.numel() for x in soft)
    return sum(x.settled() * x.alpha.numel() for x in soft) / count if count else 1.0


def _formatted(student: nn.Module, unit: Unit) -> bool:
    layers = (student.get_submodule(path) for path in unit.layers)
    return any(layer.weight_quantizer.format is not None for layer in layers)


def _train(task: Reconstruction, seed: int, device: torch.device) -> None:
    try:
        train(task, seed=seed, device=device, precision="fp32", progress=False)
    except TrainingDivergedError as error:
        raise TrainingDivergedError(f"Reconstructing {task.unit.path}: {error}") from error


def reconstruct_all(
    student: nn.Module,
    teacher: nn.Module,
    units: Sequence[Unit],
    states: States,
    settings: Settings,
    *,
    seed: int,
    label: str = "reconstruction",
    memory: int = MEMORY,
    run_dir: Path | None = None,
) -> list[UnitReport]:
    """Fit every unit in the order it runs, each on what the fitted ones before it give it.

    Arguments as for `reconstruct`; `memory` bounds the captured tensors, bytes; finished units are
    kept in `run_dir` and taken from there. Shows a progress bar unless the environment has
    DQLAB_QUIET.
    """
    paths = [unit.path for unit in units]
    largest = max(row_bytes(capture(teacher, paths, states[:1])).values())
    states = affordable(states, 2 * largest, memory)
    if len(states) < settings.batch:
        warnings.warn(
            f"Only {len(states)} calibration rows for batches of {settings.batch}: every step "
            "uses all of them. Record more trajectories.",
            stacklevel=2,
        )
    tape, reports = Tape(teacher, paths, states, memory), []
    kept = run_dir and KeptUnits(run_dir, f"{settings}, seed {seed}")
    quiet = bool(os.environ.get("DQLAB_QUIET"))
    for index, unit in enumerate(tqdm(units, desc=label, disable=quiet)):
        module = student.get_submodule(unit.path)
        if kept and (report := kept.restore(unit.path, module)):
            reports.append(UnitReport(**report))
            continue
        found = reconstruct(
            student, teacher, unit, tape[unit.path], states, settings, seed + index
        )
        reports += [found] if found else []
        if kept and found:
            kept.keep(unit.path, module, asdict(found))
    return reports
