"""A quantized network under one sampler, asked once, for many corrections to be fitted behind.

`quantize` with a correction's recipe does the same one correction at a time. Here predictions of
both networks are taken once and shared.
"""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from dqlab import seeds
from dqlab.errors import InvalidInputError
from dqlab.layers import StepContext, common_policy
from dqlab.methods import quantize
from dqlab.methods.correction import Correction
from dqlab.methods.corrector import Corrector
from dqlab.methods.job import Job
from dqlab.methods.recipe import Recipe, as_recipe
from dqlab.methods.run import with_corrector
from dqlab.methods.unet_correction.d2_dpm import D2Dpm, DeterministicCorrection
from dqlab.methods.unet_correction.ptqd import Ptqd, PtqdCorrection
from dqlab.methods.unet_correction.qncd import Qncd
from dqlab.methods.unet_correction.tac_diffusion import TacCorrection, TacDiffusion
from dqlab.metrics.sampling import sample
from dqlab.models.families import Sampler, family_of
from dqlab.phenomena.budget import Predictions, predictions_on
from dqlab.trajectory import States, record

TABLES = {
    "ptqd": Ptqd(),
    "ptqd, no variance": Ptqd(vsc=False),
    "d2-dpm": D2Dpm(),
    "d2-dpm, mean alone": D2Dpm(variance=False),
    "d2-dpm, channel": D2Dpm(granularity="channel"),
    "d2-dpm, stochastic": D2Dpm(mode="stochastic"),
}
"""Corrections fitted to pairs of predictions."""
CHAINS: Mapping[str, Mapping[str, bool]] = {
    "tac-diffusion": {},
    "tac, input bias": {"ner": False},
}
"""Options of those fitted along the quantized chain."""
STORED: Mapping[str, tuple[type[Correction], dict]] = {
    "ptqd": (PtqdCorrection, {"sigma_in_direction": "original"}),
    "d2-dpm": (DeterministicCorrection, {"sigma_in_direction": "updated"}),
    "tac-diffusion": (TacCorrection, {"apply_threshold": 0.0}),
}
"""Class and settings of the corrections whose tables are stored."""


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        calibration: trajectories behind all ranges.
        fitted: trajectories behind every table; `refitted` behind the one the notebook repeats.
        held_out: trajectories behind every SQNR and budget.
        pictures: gallery seeds behind every paired error.
        kept: pictures stored of each setting.
        bits: weight and activation bits; parts and other samplers are measured at the first.
        softmax: bits of softmax outputs with all else in full precision.
        intervals: of QNCD's estimate, the last one's estimates are kept.
        multistep: steps of the multistep sampler.
        sampler: the setting of everything else.

    """

    calibration: int = 8
    fitted: int = 64
    refitted: int = 8
    held_out: int = 32
    pictures: int = 32
    kept: int = 3
    bits: tuple[tuple[int, int], ...] = ((4, 8), (4, 4))
    softmax: tuple[int, ...] = (8, 6, 4)
    intervals: tuple[int, ...] = (10, 1)
    multistep: int = 10
    sampler: Sampler = field(default_factory=Sampler)


@dataclass(frozen=True)
class Runs:
    """A pipeline's full-precision trajectories under one sampler, `label` its name in frames."""

    pipe: object
    plan: Plan
    label: str
    sampler: Sampler
    fit: States
    held: States
    exact: Tensor

    @property
    def calibration(self) -> States:
        """The first of the fitted trajectories."""
        return first(self.fit, self.plan.calibration)

    @property
    def gallery(self) -> list[int]:
        """Seeds of the pictures."""
        return list(seeds.GALLERY[: len(self.exact)])


def first(states: States, count: int) -> States:
    """The first `count` trajectories."""
    return states[torch.isin(states.seed, states.seed.unique()[:count])]


def runs(pipe, plan: Plan, label: str, sampler: Sampler) -> Runs:
    """Record what every measurement under this sampler needs."""
    fit, held = (
        record(pipe, chosen, sampler, batch_size=len(chosen))[0]
        for chosen in (seeds.CALIBRATION[: plan.fitted], seeds.HELD_OUT[: plan.held_out])
    )
    exact = sample(pipe, seeds.GALLERY[: plan.pictures], sampler=sampler)
    return Runs(pipe, plan, label, sampler, fit, held, exact)


@dataclass(frozen=True)
class Bench:
    """A quantized network and its predictions on the fitted and the held-out states."""

    runs: Runs
    bits: tuple[int, int]
    rough: object

    @property
    def name(self) -> str:
        """Such as W4A8."""
        return bits_name(self.bits)

    @cached_property
    def fit(self) -> Predictions:
        """Of both networks on the states that tables may see."""
        return predictions_on(self.runs.fit, self.job.denoiser)

    @cached_property
    def held(self) -> Predictions:
        """Of both networks on the states that results are told on."""
        return predictions_on(self.runs.held, self.job.denoiser)

    @cached_property
    def job(self) -> Job:
        """The quantization that made the network, at its last moment."""
        return job_behind(self.runs.pipe, self.rough, self.runs.sampler, self.bits)


def bits_name(bits: tuple[int, int]) -> str:
    """Such as W4A8."""
    return f"W{bits[0]}A{bits[1]}"


def bench(r: Runs, chosen: "str | Recipe", bits: tuple[int, int]) -> Bench:
    """Quantize as a recipe says, on the calibration trajectories."""
    rough = quantize(r.pipe, chosen, *bits, sampler=r.sampler, calibration=r.calibration)
    return Bench(r, bits, rough)


def job_behind(pipe, rough, sampler: Sampler, bits: tuple[int, int]) -> Job:
    """A quantization whose network is that of `rough`, about to be corrected."""
    family, context = family_of(pipe), StepContext()
    context.bind(family.schedule(pipe, sampler))
    policy, network = common_policy(family.first, family.last), family.denoiser(rough)
    plain = as_recipe("rtn")
    return Job(pipe, network, family, plain, sampler, *bits, policy, context=context)


def corrected_by(job: Job, correction: Correction):
    """The pipeline around the job's network that owns the correction."""
    bound = job.family, job.sampler, job.context.schedule, job.seed
    return with_corrector(job, Corrector(correction, *bound))


def correction_of(b: Bench, name: str) -> Correction:
    """One of `TABLES` or `CHAINS`, fitted behind the network."""
    if name in TABLES:
        return TABLES[name].fitted(b.fit, b.fit.steps)
    return TacDiffusion(samples=b.runs.plan.fitted, **CHAINS[name]).correct(b.job)


def behind(b: Bench, name: str):
    """The pipeline with that correction."""
    return corrected_by(b.job, correction_of(b, name))


def from_tables(job: Job, name: str, tensors: Mapping[str, Tensor], bits: str):
    """The pipeline corrected by stored tables.

    Args:
        job: `job_behind` the network that the tables were fitted for.
        name: one of `STORED`.
        tensors: tables by "bits name key", as `error_correction` stores them.
        bits: such as "W4A8".

    Raises:
        InvalidInputError: if the job has other bits or another sampler setting than the tables.

    """
    cls, settings = STORED[name]
    fitted, asked = (
        f"{b} and {job.family.setting(sampler)}"
        for b, sampler in (
            (bits, Plan().sampler),
            (bits_name((job.weights, job.activations)), job.sampler),
        )
    )
    if fitted != asked:
        raise InvalidInputError(
            f"The stored tables of {name} were fitted for {fitted}, but this pipeline has "
            f"{asked}. Use what they were fitted for, or fit them with dqlab.quantize."
        )
    mine = {k.split()[-1]: t for k, t in tensors.items() if k.startswith(f"{bits} {name} ")}
    return corrected_by(job, cls(mine, **settings))


def estimating(job: Job, interval: int = 10):
    """The pipeline with QNCD's estimate, which has no tables."""
    return corrected_by(job, Qncd(interval=interval).correct(job))


def rescheduled(pipe, scheduler: str = "DPMSolverMultistepScheduler", **options):
    """A copy of `pipe` with another of diffusers' schedulers, made from its own settings."""
    import diffusers

    other = copy.copy(pipe)
    made = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **options)
    other.register_modules(scheduler=made)
    return other


def network_calls(pipe, sampler: Sampler, seed: int = 0) -> int:
    """How often a pipeline asks its network in one run, counted."""
    family, calls = family_of(pipe), []
    handle = family.denoiser(pipe).register_forward_hook(lambda *_: calls.append(1))
    try:
        with warnings.catch_warnings():  # one picture is too few for an estimate, not for a count
            warnings.simplefilter("ignore", UserWarning)
            family.run(pipe, sampler, [seed])
    finally:
        handle.remove()
    return len(calls)


def chain_errors(exact: States, drifted: States) -> tuple[Tensor, Tensor]:
    """What a quantized chain does to states and guided predictions, step by step.

    Args:
        exact: full-precision run, recorded.
        drifted: the quantized run of the same seeds.

    Returns:
        xq - x and Eq(xq) - E(x), both `[T, N, C, ...]`.

    """
    steps = int(exact.step.max()) + 1
    (eps, rows), (eps_q, _) = (s.guided(s.output) for s in (exact, drifted))
    gap = drifted.x[rows] - exact.x[rows]
    return gap.unflatten(0, (steps, -1)), (eps_q - eps).unflatten(0, (steps, -1))
