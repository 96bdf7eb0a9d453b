"""TFMQ-DM: Temporal Feature Maintenance Quantization for Diffusion Models.

Yushi Huang, Ruihao Gong, Jing Liu, Tianlong Chen, Xianglong Liu. CVPR 2024, arXiv 2311.16503.

Claim: block reconstruction rounds the time projection g_i of a residual block to please that
block's output on a few pictures, and its features drift: the network takes one timestep for
another. But the time path never sees a picture, so all its features are a finite set. Collect h
and all g_i in one temporal information block and reconstruct it alone, on every timestep there is
(TIAR), leave the g_i out of their blocks' reconstruction, and give the path's activations a
min-max range for every step (FSC):

    L_TIAR = sum_i || g_i(h(t)) - g_i_hat(h_hat(t)) ||_F^2
    x_hat  = s_t (clip(round(x / s_t) + z_t, 0, 2^b - 1) - z_t),
    s_t    = (max(x_t, 0) - min(x_t, 0)) / (2^b - 1)

The other weights are rounded by BRECQ, other activations get moving min-max ranges (0.95, batches
of 16). From the released code: `scope="all"`, a range per step for every activation, which the
published numbers have. Not from it: it runs TIAR on every few steps only and counts steps to find
them in tables; here all distinct timesteps take part, tables go by timestep. What it spares
(ends, first time layer, shortcuts, downsampling, attention products) is policy="paper".

The journal version (arXiv 2407.19547) also keeps the features themselves, in 8 bits, and chooses
between the two. Its formulas were not at hand: `maintenance="cache"` and "select" follow the idea,
choosing per step and block by relative error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from dqlab.engine import Budget, Progress, Stage, constant, train
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.fit.adaround import SoftRounding, harden, soften
from dqlab.fit.profiles import ROUNDING, Settings
from dqlab.formats import Format
from dqlab.layers import answer_from
from dqlab.methods import paper_sites
from dqlab.methods.job import Job
from dqlab.methods.method import Method, Paper, Phase, SetRanges, set_ranges
from dqlab.methods.reconstruction import Reconstruct
from dqlab.methods.step_ranges import set_step_ranges, set_time_ranges
from dqlab.methods.time_path import TimePath, time_path, without_time_path
from dqlab.models.families import Family
from dqlab.ranges import Ema, shrink_search
from dqlab.reference import tfmq_dm as paper
from dqlab.reference.adaround import beta_at

TIAR = {
    "teach": Settings(1000, 32, rounding_lr=0.01, cosine=False, lam=0.01),
    "paper": Settings(20_000, 32, rounding_lr=1e-3, cosine=False, lam=0.01),
}
MOMENTUM, BATCH = 0.95, 16
"""Of the moving ranges of activations off the time path."""
CHOICES = {
    "scope": ("tib", "all", "none"),
    "maintenance": ("ranges", "cache", "select"),
    "temporal": ("tiar", "nearest", "blocks"),
}


class TemporalReconstruction:
    """The engine's task: the rounding of the whole time path, against its features."""

    ema_decay = None

    def __init__(
        self,
        denoiser: nn.Module,
        path: TimePath,
        target: list[Tensor],
        soft: list[SoftRounding],
        settings: Settings,
    ):
        self.denoiser, self.path, self.target = denoiser, path, target
        self.soft, self.settings = soft, settings
        self.module, self.fingerprint = nn.ModuleList(soft), f"tiar {settings}"
        groups = [{"params": [x.alpha for x in soft], "lr": settings.rounding_lr}]
        adam = partial(torch.optim.Adam, fused=True)
        budget = Budget(steps=settings.iterations)
        self.stages = [Stage(budget, groups, 0.0, constant, adam, name="TIAR")]

    def batch(self, generator: torch.Generator) -> Tensor:
        """Rows of the finite set: all of them where they are few."""
        return torch.randperm(len(self.path.step), generator=generator)[: self.settings.batch]

    def loss(self, batch: Tensor, progress: Progress) -> Tensor:
        """L_TIAR, and AdaRound's regulariser over all layers of the path."""
        found = self.path.features(self.denoiser, batch)
        error = paper.tiar_loss([e[batch] for e in self.target], found)
        beta = beta_at(progress.step + 1, self.settings.iterations)
        if beta is None:
            return error
        return error + sum(x.penalty(beta, self.settings.lam) for x in self.soft)


@dataclass(frozen=True)
class ReconstructTime:
    """The phase: TIAR. The path's weights then lie on their grid; the record has L_TIAR."""

    path: TimePath
    teacher: nn.Module
    settings: Settings
    name: str = "temporal information"

    def run(self, job: Job) -> None:
        """Do it."""
        layers = [job.denoiser.get_submodule(p) for p in self.path.layers]
        target, nearest = self.path.features(self.teacher), self._loss(job)
        placed = soften(layers)
        if not placed:
            return
        soft = [quantizer for *_, quantizer in placed]
        task = TemporalReconstruction(job.denoiser, self.path, target, soft, self.settings)
        device = self.path.time.device
        train(task, seed=job.seed, device=device, precision="fp32", progress=False)
        harden(placed)
        for layer in layers:
            layer.freeze()
        job.choices["tiar loss"] = {"nearest": nearest, "learned": self._loss(job)}

    @torch.no_grad()
    def _loss(self, job: Job) -> float:
        features = [self.path.features(net) for net in (self.teacher, job.denoiser)]
        return float(paper.tiar_loss(*features))


@dataclass(frozen=True)
class KeepFeatures:
    """The phase: full-precision features in 8 bits, for all steps or where that is better."""

    path: TimePath
    teacher: nn.Module
    select: bool
    name: str = "temporal features"

    @torch.no_grad()
    def run(self, job: Job) -> None:
        """Do it; the record has the share of steps and blocks that a kept feature serves."""
        job.context.at(job.context.schedule[self.path.step])
        full, found = (self.path.features(net) for net in (self.teacher, job.denoiser))
        shares = []
        for projection, E, E_hat in zip(self.path.projections, full, found, strict=True):
            table = answer_from(job.denoiser.get_submodule(projection), E)
            if self.select:
                table.used = paper.cache_is_better(E, E_hat, table.answers)
            shares.append(float(table.used.float().mean()))
        job.choices["kept features"] = sum(shares) / len(shares)


class TfmqDm(Method):
    """Reconstructs the time path on its own; its activations have a range per step.

    Combined with a method that reconstructs blocks (`recipe("q-diffusion").without("place") |
    recipe("tfmq-dm")`), that method's phases take the place of BRECQ's.

    Args:
        scope: which activations have a range per step: the temporal information block ("tib"),
            "all", or "none".
        maintenance: keep temporal features by "ranges" (the conference paper), by a "cache" of
            the features in 8 bits, or "select" the better of the two per step and block.
        temporal: how the time path's weights are rounded: "tiar", to "nearest", or by the
            "blocks" that they are in, as BRECQ does.
        reconstruct: learn the rounding of all other weights; round to nearest otherwise.

    """

    slug = "tfmq-dm"
    paper = Paper(
        "TFMQ-DM: Temporal Feature Maintenance Quantization for Diffusion Models",
        "CVPR 2024",
        "2311.16503",
    )
    category = "1.4"
    policy = staticmethod(paper_sites.tfmq_dm)
    adds = ("fit",)

    def __init__(
        self,
        scope: str = "tib",
        maintenance: str = "ranges",
        temporal: str = "tiar",
        reconstruct: bool = True,
    ):
        asked = {"scope": scope, "maintenance": maintenance, "temporal": temporal}
        for name, value in asked.items():
            if value not in CHOICES[name]:
                raise InvalidInputError(
                    f"{name}={value!r}; choose one of {', '.join(CHOICES[name])}."
                )
        self.scope, self.maintenance, self.temporal = scope, maintenance, temporal
        self.reconstruct = reconstruct

    def unfit(self, family: Family) -> str | None:
        """Transformers have no time projections in residual blocks."""
        return without_time_path(family, self.slug)

    def ranges(self, job: Job, sites: Sequence[str]) -> None:
        """Weights by search; activations by step where the scope says so."""
        path = time_path(job)
        timed = {f"{layer}.input" for layer in path.layers} & set(sites)
        by_step = {"tib": timed, "all": set(sites) - set(job.sites("weight")), "none": set()}
        finite = by_step[self.scope]
        generator = torch.Generator().manual_seed(job.seed)
        order = torch.randperm(len(job.calibration), generator=generator)

        def observer(site: str, fmt: Format) -> Ema:
            return Ema("min_max", fmt, name=site, momentum=MOMENTUM)

        of_weight = partial(shrink_search, axis=0)
        static = [site for site in sites if site not in finite]
        set_ranges(job, static, of_weight, observer, job.calibration[order], BATCH)
        set_time_ranges(job, sorted(finite & timed), path)
        set_step_ranges(job, sorted(finite - timed))

    def fit(self, job: Job) -> list[Phase]:
        """The time path first, then everything else without it, then activation ranges."""
        path = time_path(job)
        phases = self.beneath.fit(job) if self.beneath else self._blocks(job)
        if self.temporal != "blocks":
            leave = frozenset(path.layers)
            phases = [replace(p, leave=leave) if isinstance(p, Reconstruct) else p for p in phases]
        if self.temporal == "tiar":
            tiar = ReconstructTime(path, job.teacher, TIAR[job.profile])
            phases.insert(phases.index(SetRanges("weight")) + 1, tiar)
        if self.maintenance != "ranges":
            _check_kept(path, len(job.context.schedule))
            phases.append(KeepFeatures(path, job.teacher, self.maintenance == "select"))
        return phases

    def _blocks(self, job: Job) -> list[Phase]:
        """BRECQ: rounding of the weights block by block."""
        phases: list[Phase] = [SetRanges("weight"), SetRanges("activation")]
        if self.reconstruct:
            phases.insert(1, Reconstruct("rounding", job.teacher, ROUNDING[job.profile]))
        return phases


def _check_kept(path: TimePath, steps: int) -> None:
    if not path.time_alone:
        raise NotApplicableError(
            f"This network's temporal features depend on labels or other conditions too "
            f"({len(path.step)} of them over {steps} steps), so one per step and block cannot "
            "stand for them. Use recipe('tfmq-dm', maintenance='ranges')."
        )


METHOD = TfmqDm
