"""Quantization-aware training with step sizes that follow the timestep: TDQ's training form.

Weights, their step sizes and the step networks of all activations learn together, on the
diffusion loss of the model itself (So et al., NeurIPS 2023, arXiv 2306.02316):

    min over W, s_w, theta   E_{x_0, t, noise} || noise - eps(x_t, t; Q(W; s_w), s_theta(t)) ||^2

Every row of a batch has its own t and so its own steps. Gradients to step sizes are LSQ's; those
of weight steps are scaled by 1 / sqrt(N q_max), those that flow into the networks are not. The
LSQ baseline is the same training with one learned step per activation in a network's place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dqlab.engine import Budget, Progress, Report, Stage, constant, cosine, train
from dqlab.formats import Range
from dqlab.formats.base import SMALLEST_SCALE, lsq_grad_scale
from dqlab.layers import Quantizer, quantizers
from dqlab.methods.job import Job
from dqlab.methods.lessons import lessons_for
from dqlab.methods.step_networks import StepNetworks
from dqlab.models.recipes.base import Lessons

EMA = 0.9999
DROPOUT = 0.2


@dataclass(frozen=True)
class Training:
    """How long and how fast.

    Attributes:
        updates, batch: optimiser steps, and rows in each.
        lr: of weights and step networks.
        weight_steps, static_steps: learning rates of the weights' step sizes and of the
            baseline's activation steps.
        decay: weight decay of weights and networks; step sizes have none.
        warmup: share of the updates in which learning rates rise.
        fall: whether they then fall to zero along a cosine.

    """

    updates: int
    batch: int
    lr: float
    weight_steps: float
    static_steps: float
    decay: float = 0.01
    warmup: float = 0.025
    fall: bool = False

    def rate(self, fraction: float) -> float:
        """Factor on every learning rate, `fraction` of the way."""
        if self.fall:
            return cosine(self.warmup)(fraction)
        return constant(fraction) * min(1.0, (fraction + 1e-6) / self.warmup)


PROFILES = {
    "teach": Training(300, 16, 2e-4, 2e-5, 2e-4, warmup=0.05, fall=True),
    "paper": Training(200_000, 128, 2e-4, 2e-5, 2e-5),
}
"""The paper's runs are the released code's for CIFAR-10. In a short run a static step could not
get anywhere at a tenth of the rate, which would make the baseline look worse than it is."""


class Clock:
    """The step networks and what they said about the timesteps asked for last."""

    def __init__(self, networks: StepNetworks):
        self.networks, self.asked, self.table = networks, None, None

    def steps(self, t: Tensor) -> Tensor:
        """`[sites, N]` for timesteps `[N]`; computed once per forward of the denoiser."""
        if t is not self.asked:
            self.asked, self.table = t, self.networks(t)
        return self.table


class TimedSteps(nn.Module):
    """In a quantizer's place: its step is what network number `index` says at each row's t."""

    def __init__(self, quantizer: Quantizer, clock: Clock, index: int):
        super().__init__()
        self.quantizer, self.clock, self.index = quantizer, clock, index

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize."""
        s = self.clock.steps(self.quantizer.context.timestep)[self.index].to(x)
        s = s.repeat_interleave(len(x) // len(s)).reshape(-1, *[1] * (x.ndim - 1))
        return self.quantizer.format.fake_quant(x, Range(s, torch.zeros_like(s)))


class LearnedSteps(nn.Module):
    """In a quantizer's place: its step is a parameter, its zero point stays."""

    def __init__(self, quantizer: Quantizer, like: Tensor | None = None):
        """`like`: the tensor LSQ's gradient scale counts, for weights; activations have none."""
        super().__init__()
        self.quantizer = quantizer
        self.scale = nn.Parameter(quantizer.scale.detach().clone())
        fmt, found = quantizer.format, quantizer.range
        self.grad_scale = 1.0 if like is None else lsq_grad_scale(like, found, fmt)

    def range(self) -> Range:
        """Where it stands now."""
        return Range(self.scale.clamp(min=SMALLEST_SCALE), self.quantizer.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize."""
        return self.quantizer.format.fake_quant(x, self.range(), self.grad_scale)


class DiffusionTraining:
    """The engine's task: the denoiser with learned steps inside, and the step networks."""

    ema_decay = EMA

    def __init__(
        self,
        denoiser: nn.Module,
        networks: nn.Module,
        lessons: Lessons,
        how: Training,
        fingerprint: str = "tdq-training",
    ):
        self.module = nn.ModuleDict({"denoiser": denoiser, "networks": networks})
        self.lessons, self.fingerprint = lessons, f"{fingerprint}-{how}"
        self.stages = [
            Stage(
                Budget(steps=how.updates),
                parameter_groups(self.module, how),
                how.lr,
                how.rate,
                name="training",
            )
        ]

    def batch(self, generator: torch.Generator):
        """The model's own kind of batch, the same for all that train with one seed; a seed."""
        drawn = self.lessons.draw(generator)
        seed = torch.randint(2**31, (1,), generator=generator, device=generator.device)
        return drawn, int(seed)

    def loss(self, batch, progress: Progress) -> Tensor:
        """The model's own loss; what dropout leaves out follows from the batch."""
        drawn, seed = batch
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.lessons.loss(self.module["denoiser"], drawn)


def parameter_groups(module: nn.Module, how: Training) -> list[dict]:
    """Weights and networks with decay; step sizes without, at rates of their own."""
    learned = [m for m in module.modules() if isinstance(m, LearnedSteps)]
    weights = [m.scale for m in learned if m.quantizer.site.split("[")[0].endswith(".weight")]
    mine = {id(p) for p in weights}
    static = [m.scale for m in learned if id(m.scale) not in mine]
    mine |= {id(p) for p in static}
    rest = [p for p in module.parameters() if id(p) not in mine]
    groups = [
        {"params": rest, "lr": how.lr, "weight_decay": how.decay},
        {"params": weights, "lr": how.weight_steps, "weight_decay": 0.0},
        {"params": static, "lr": how.static_steps, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def loss_curve(report: Report) -> list[tuple[int, float]]:
    """Mean training loss of every fifty updates, by the update they end with."""
    return [(point["step"], point["loss"]) for point in report.curve]


@dataclass(frozen=True)
class TrainSteps:
    """The fit: train everything from static ranges, then keep weights, steps and the table.

    Attributes:
        sites: activation sites on TDQ's grids, whose static step is set.
        how: how long and how fast.
        d: width of the timestep encoding.
        follow_time: a network per site; False for one learned step each, the LSQ baseline.

    """

    sites: Sequence[str]
    how: Training
    d: int
    follow_time: bool
    name: str = "training on the diffusion loss"

    def run(self, job: Job) -> None:
        """Do it."""
        lessons, sites = lessons_for(job, self.how.batch), quantizers(job.denoiser)
        start = torch.stack([sites[site].scale for site in self.sites])
        networks: nn.Module = nn.Identity()
        if self.follow_time:
            networks = StepNetworks(self.d, start, job.seed, DROPOUT)
        job.denoiser.requires_grad_(True)
        placed = self.place(job, sites, networks)
        task = DiffusionTraining(job.denoiser, networks, lessons, self.how)
        report = train(task, seed=job.seed, precision="fp32", progress=False)
        job.choices["loss curve"] = loss_curve(report)
        with torch.no_grad():
            for mine, averaged in zip(
                task.module.parameters(), report.module.parameters(), strict=True
            ):
                mine.copy_(averaged)
        keep(job, placed, networks.eval())

    def place(
        self, job: Job, sites: dict[str, Quantizer], networks: nn.Module
    ) -> dict[str, nn.Module]:
        """Put learned steps in the place of every weight's and chosen activation's quantizer.

        Returns:
            What stands where, by module path.

        """
        clock, weights = Clock(networks), job.weights_by_site()
        names = {m.site: n for n, m in job.denoiser.named_modules() if isinstance(m, Quantizer)}
        placed: dict[str, nn.Module] = {}
        for index, site in enumerate(self.sites):
            timed = TimedSteps(sites[site], clock, index)
            placed[names[site]] = timed if self.follow_time else LearnedSteps(sites[site])
        for site, weight in weights.items():
            if sites[site].format is not None:
                placed[names[site]] = LearnedSteps(sites[site], weight)
        for name, module in placed.items():
            job.denoiser.set_submodule(name, module)
        return placed


@torch.no_grad()
def keep(job: Job, placed: dict[str, nn.Module], networks: nn.Module) -> None:
    """Put the quantizers back, with learned steps as ranges and networks as their table."""
    schedule: Tensor = job.context.schedule
    for name, module in placed.items():
        job.denoiser.set_submodule(name, module.quantizer)
        if isinstance(module, LearnedSteps):
            module.quantizer.set_range(module.range())
            continue
        table = networks(schedule)[module.index].to(job.calibration.x)
        module.quantizer.set_range(Range(table, torch.zeros_like(table)), per_step=True)
    job.denoiser.requires_grad_(False).eval()
