"""The part of a U-Net that tells it the time: from the timestep to every residual block.

    h(t) = L2 SiLU(L1 I(t)),   emb_{t,i} = g_i(h(t) + c) = W_i SiLU(h(t) + c) + b_i

I is the sinusoidal embedding, g_i the projection of residual block i, and c what class labels or
other conditions add, 0 in most models. The picture never enters, so all that this path computes
in a sampling run is one vector per block, step and condition: a finite set (TFMQ-DM, Huang et
al., CVPR 2024, arXiv 2311.16503, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dqlab.errors import NotApplicableError
from dqlab.fit import capture
from dqlab.methods.job import Job
from dqlab.models.families import Family, Sampler, family_of
from dqlab.trajectory import States

EMBEDDING, PROJECTION = "time_embedding", "time_emb_proj"
CONDITIONS = 64
"""Calibration rows whose labels or other conditions are tried."""
ROWS = 128
"""States run together."""
SAME = 1e-5
"""Relative difference below which two vectors are the same."""


@dataclass(frozen=True)
class TimePath:
    """Where a denoiser's time path lies, and what goes into it in a sampling run.

    Attributes:
        blocks: paths of the residual blocks with a projection of their own, in order.
        time: I(t) `[R, d]`, one row per distinct step and condition.
        added: c `[R, D]`, what conditions add to h(t); zeros where time is all there is.
        step: index of every row's step on the schedule, int64 `[R]`.

    """

    blocks: tuple[str, ...]
    time: Tensor
    added: Tensor
    step: Tensor

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of the g_i."""
        return tuple(f"{block}.{PROJECTION}" for block in self.blocks)

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of all of its layers, those of h first."""
        return (f"{EMBEDDING}.linear_1", f"{EMBEDDING}.linear_2", *self.projections)

    @property
    def time_alone(self) -> bool:
        """Whether there is one row per step: nothing but the time goes in."""
        return len(self.step) == len(self.step.unique())

    def inputs(self, denoiser: nn.Module, rows: slice | Tensor = slice(None)) -> Tensor:
        """U = SiLU(h(t) + c) `[R, D]`, the input of every projection, by a network's own h."""
        h = denoiser.get_submodule(EMBEDDING)(self.time[rows]) + self.added[rows]
        return denoiser.get_submodule(self.blocks[0]).nonlinearity(h)

    def features(self, denoiser: nn.Module, rows: slice | Tensor = slice(None)) -> list[Tensor]:
        """emb_{t,i}: `[R, C_i]` of every block, by a network's own h and g_i.

        A wrapped network's quantizers act as they are set; ranges by step need
        `denoiser.step_context` to be at the rows' timesteps first.
        """
        u = self.inputs(denoiser, rows)
        return [denoiser.get_submodule(path)(u) for path in self.projections]


def without_time_path(family: Family, slug: str) -> str | None:
    """Why a family's networks have no such path, as `Method.unfit` says it; None if they may."""
    if family.component != "transformer":
        return None
    return (
        "its network is a transformer, which is told the time through the modulation of its "
        f"norms; {slug} is defined for the time projections of a U-Net's residual blocks. Use "
        "pixel-unet, latent-unet, video-unet or another U-Net."
    )


def blocks_of(denoiser: nn.Module) -> tuple[str, ...]:
    """Residual blocks with a time projection behind a SiLU, in the order they are built.

    Raises:
        NotApplicableError: if there is none, or no time embedding of two layers.

    """
    found = tuple(
        path
        for path, module in denoiser.named_modules()
        if isinstance(getattr(module, PROJECTION, None), nn.Linear)
        and getattr(module, "time_embedding_norm", "default") in ("default", "scale_shift")
        and not getattr(module, "skip_time_act", False)
    )
    embedding = getattr(denoiser, EMBEDDING, None)
    if not found or not all(hasattr(embedding, name) for name in ("linear_1", "linear_2")):
        raise NotApplicableError(
            f"No x-independent temporal block found in this {type(denoiser).__name__}: it has no "
            f"{EMBEDDING} of two layers, or no residual block with a {EMBEDDING.split('_')[0]} "
            f"projection ({PROJECTION}). Use a diffusers U-Net."
        )
    return found


def time_path(job: Job) -> TimePath:
    """Of the job's denoiser, wrapped or not, at its sampler's steps; full precision or not."""
    steps = job.family.schedule(job.original, job.sampler)
    return _time_path(job.denoiser, job.calibration, steps)


def time_path_of(pipe, states: States, sampler: Sampler | None = None) -> TimePath:
    """Of a pipeline's denoiser; `states` are recorded with it."""
    family, sampler = family_of(pipe), Sampler.of(sampler)
    return _time_path(family.denoiser(pipe), states, family.schedule(pipe, sampler))


def _time_path(denoiser: nn.Module, states: States, schedule: Tensor) -> TimePath:
    blocks = blocks_of(denoiser)
    schedule = schedule.to(states.t)
    some = _conditions(denoiser, blocks[0], states)
    asked = some[torch.arange(len(some)).repeat_interleave(len(schedule))]
    asked = replace(asked, t=schedule.repeat(len(some)))
    time, told = _entrances(denoiser, blocks[0], asked)
    _check_blind(denoiser, blocks[0], asked[:2])
    with torch.no_grad():
        added = told - denoiser.get_submodule(EMBEDDING)(time)
    if not bool(added.abs().max() > SAME * told.abs().max()):
        added = torch.zeros_like(added)
    step = torch.arange(len(schedule)).repeat(len(some))
    rounded = (added / added.abs().max().clamp(min=1e-8)).round(decimals=4)
    distinct = _first_of_each(torch.cat([step[:, None].to(rounded), rounded], 1))
    return TimePath(blocks, time[distinct], added[distinct], step[distinct])


def _conditions(denoiser: nn.Module, block: str, states: States) -> States:
    """Rows with different conditions, or a single one if the path does not read any."""
    rows = torch.linspace(0, len(states) - 1, min(CONDITIONS, len(states))).long().unique()
    some = states[rows]
    if not states.conditions or len(some) == 1:
        return some[:1]
    told = _entrances(denoiser, block, replace(some, t=some.t[:1].expand(len(some))))[1]
    alike = (told - told[:1]).abs().max() <= SAME * told.abs().max()
    return some[:1] if bool(alike) else some


def _first_of_each(rows: Tensor) -> Tensor:
    """Index of the first of each group of equal rows, ascending."""
    _, group = rows.unique(dim=0, return_inverse=True)
    order = group.argsort(stable=True)
    first = torch.ones(len(rows), dtype=torch.bool)
    first[1:] = group[order][1:] != group[order][:-1]
    return order[first].sort().values


def _entrances(denoiser: nn.Module, block: str, states: States) -> tuple[Tensor, Tensor]:
    """I(t) and what the first block is told, one row per state; frames are told the same."""
    times, tellings = [], []
    for part in states.batches(ROWS):  # a capture holds feature maps too
        seen = capture(denoiser, [EMBEDDING, block], part, outputs=False)
        times.append(seen[EMBEDDING].leaves[0])
        told = _told(seen[block].leaves, denoiser)
        tellings.append(told.reshape(len(part), -1, told.shape[-1])[:, 0])
    return torch.cat(times), torch.cat(tellings)


def _told(leaves: list, denoiser: nn.Module) -> Tensor:
    """Among a block's arguments the embedding: vectors as wide as h's answer."""
    width = denoiser.get_submodule(f"{EMBEDDING}.linear_2").out_features
    return next(
        x for x in leaves if isinstance(x, Tensor) and x.shape[-1] == width and x.ndim in (2, 3)
    )


def _check_blind(denoiser: nn.Module, block: str, states: States) -> None:
    """The same rows with other pictures must be told the same."""
    other = replace(states, x=states.x.flip(-1) + 1)
    if not torch.equal(*(_entrances(denoiser, block, some)[1] for some in (states, other))):
        raise NotApplicableError(
            f"The time path of this {type(denoiser).__name__} sees the picture, so what it "
            "computes is no finite set: no x-independent temporal block found."
        )
