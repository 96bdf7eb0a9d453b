"""TDQ: Temporal Dynamic Quantization for Diffusion Models.

Junhyuk So, Jungwon Lee, Daehyun Ahn, Hyungjun Kim, Eunhyeok Park. NeurIPS 2023, arXiv 2306.02316.

Claim: the timestep alone says how wide an activation is, so its step size can follow the timestep
at no cost. Every activation quantizer owns a small network; after training, its answers at the
sampler's steps are a table, and inference is as cheap as static quantization.

    s(t) = softplus(W4 ReLU(W3 ReLU(W2 ReLU(W1 e(t) + b1) + b2) + b3) + b4)
    e(t) = [cos(t w_i), sin(t w_i)],  w_i = 10000^(-i / (d / 2)),  d -> 64 -> 64 -> 64 -> 1
    x_hat = s round(clip(x / s, -Q, Q)),  Q = 2^(b-1) - 1
    x_hat = s round(clip((x - m) / s, 0, 2^b - 1)) + m   behind SiLU, whose minimum is m

The paper's text was not at hand: the equations follow its abstract, a summary, and a public copy
of the authors' training code. Its post-training form is dqlab's reconstruction: with the weights
as they are, every network minimises, over the steps of full-precision trajectories,

    E_t [ mean (x - x_hat(s(t)))^2 / mean x^2 ]

with LSQ's gradient to s, after a warm start at each step's best static s. Weights are rounded as
usual. The softmax output keeps one static range: it is bounded and the code leaves it alone.

The training form, the paper's main one, is `form="training"`: weights, their step sizes and the
networks learn together on the diffusion loss (`dqlab.methods.step_training`), on what a shipped
model was trained on or `quantize(..., data=)`. Weights have a step per output channel, as
everywhere here; the code has one per tensor, and signed grids that stop at 2^(b-1) - 2.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Format, Range
from dqlab.formats.base import SMALLEST_SCALE
from dqlab.layers import quantizers
from dqlab.methods import paper_sites
from dqlab.methods.job import Job
from dqlab.methods.method import Method, Paper, Phase, observe
from dqlab.methods.step_networks import Samples, best_steps, encoding_width, fit_networks
from dqlab.methods.step_training import PROFILES, TrainSteps
from dqlab.reference import tdq as paper
from dqlab.trajectory import tapped

UPDATES = {"teach": (200, 300), "paper": (500, 1000)}
"""Warm start, fit."""
STEPS = {"post-training": ("network", "table", "static", "min-max"),
         "training": ("network", "static")}  # fmt: skip
"""What may give an activation its step size, by form."""


@dataclass(frozen=True)
class Grid(Format):
    """TDQ's grids: -Q..Q around zero, or 2^bits levels upwards from SiLU's minimum."""

    bits: int
    silu: bool = False
    kind: ClassVar[str] = "tdq"

    @property
    def name(self) -> str:
        """Such as int4-tdq, uint4-silu."""
        return f"uint{self.bits}-silu" if self.silu else f"int{self.bits}-tdq"

    @property
    def origin(self) -> float:
        """The value of code 0."""
        return paper.SILU_MINIMUM if self.silu else 0.0

    def _bounds(self, zero_point: Tensor) -> tuple[int, int]:
        Q = 2 ** (self.bits - 1) - 1
        return (0, 2**self.bits - 1) if self.silu else (-Q, Q)

    def _snap(self, u: Tensor, zero_point: Tensor) -> Tensor:
        return u.round_().clamp_(*self._bounds(zero_point))

    def params(self, low: Tensor, high: Tensor) -> Range:
        """The step at which the highest code is the largest value."""
        low, high = torch.as_tensor(low), torch.as_tensor(high)
        top = high - self.origin if self.silu else torch.maximum(-low, high)
        zero = torch.zeros_like(top)
        return Range((top / self._bounds(zero)[1]).clamp(min=SMALLEST_SCALE), zero)

    def fake_quant(self, x: Tensor, r: Range, grad_scale: float = 1.0) -> Tensor:
        """See the base class."""
        if not self.silu:
            return super().fake_quant(x, r, grad_scale)
        return super().fake_quant(x - self.origin, r, grad_scale) + self.origin

    def encode(self, x: Tensor, r: Range) -> Tensor:
        """Codes as int32."""
        u = (x - self.origin).to(r.scale.dtype) / r.scale
        return self._snap(u, r.zero_point).to(torch.int32)

    def decode(self, codes: Tensor, r: Range) -> Tensor:
        """S q + m."""
        return codes.to(r.scale.dtype) * r.scale + self.origin

    def levels(self, r: Range) -> Tensor:
        """All values, ascending."""
        low, high = self._bounds(r.zero_point)
        q = torch.arange(low, high + 1, device=r.scale.device)
        return self.decode(q, Range(r.scale.unsqueeze(-1), r.zero_point.unsqueeze(-1)))


@dataclass(frozen=True)
class PlaceSteps:
    """The post-training fit of all sites on a TDQ grid: one step size each, a table, a network's.

    `steps` is "static", "table" or "network"; `updates` are the network's.
    """

    steps: str
    updates: tuple[int, int]
    name: str = "step sizes"

    def run(self, job: Job) -> None:
        """Do it."""
        sites, found = sites_on_grids(job), quantizers(job.denoiser)
        seen = {site: Samples(site, job) for site in sites}
        observe(job, seen)
        values = torch.stack([one.values() for one in seen.values()])
        grids = [found[site].format for site in sites]
        if self.steps == "static":
            s = best_steps(values.flatten(1)[:, None], grids)[:, 0]
        elif self.steps == "table":
            s = best_steps(values, grids)
        else:
            t, d = job.context.schedule, encoding_width(job.denoiser)
            s = fit_networks(values, grids, t, d, self.updates, job.seed)(t).detach()
        for site, own in zip(sites, s.to(job.calibration.x), strict=True):
            found[site].set_range(Range(own, torch.zeros_like(own)), self.steps != "static")


def sites_on_grids(job: Job) -> list[str]:
    """Activation sites that follow the timestep.

    Raises:
        InvalidInputError: if there is none.

    """
    sites = [s for s, q in quantizers(job.denoiser).items() if isinstance(q.format, Grid)]
    if not sites:
        raise InvalidInputError(
            "tdq's fit found no site with one of its own grids; use it with its own 'place'."
        )
    return sites


class _SiluOutputs(TorchFunctionMode):
    """Keeps every SiLU output, so that no other tensor takes its place in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.silu:
            self.kept.append(answer)
        return answer


def behind_silu(job: Job) -> set[str]:
    """Activation sites that take what a SiLU returned, found by running one state."""
    watch, found = _SiluOutputs(), set()

    def see(site: str, x: Tensor) -> None:
        if any(x.data_ptr() == y.data_ptr() and x.shape == y.shape for y in watch.kept):
            found.add(site)

    with torch.no_grad(), watch, tapped(job.denoiser, job.sites("activation"), see):
        job.calibration[:1].call(job.denoiser)
    return found


class Tdq(Method):
    """Step sizes of activations that follow the timestep, as a table.

    Args:
        form: "post-training", or "training" on the diffusion loss.
        steps: what gives an activation its step size: the "network"; for comparison, on the same
            grids, a "table" of every step's own best, one best "static" step (in training: LSQ's
            learned one), or static "min-max".
        warm, updates: optimiser steps of the warm start (post-training alone) and of the fit; by
            default the profile's (200 and 300, or 500 and 1000; training: 300 or 200,000).
        batch: rows of a training batch; by default 16, or 128 in the paper's profile.

    """

    slug = "tdq"
    paper = Paper(
        "Temporal Dynamic Quantization for Diffusion Models", "NeurIPS 2023", "2306.02316"
    )
    category = "1.3"
    policy = staticmethod(paper_sites.tdq)

    def __init__(
        self,
        form: str = "post-training",
        steps: str = "network",
        warm: int | None = None,
        updates: int | None = None,
        batch: int | None = None,
    ):
        if form not in STEPS:
            raise InvalidInputError(f"form={form!r}; choose one of {', '.join(STEPS)}.")
        if steps not in STEPS[form]:
            raise InvalidInputError(
                f"steps={steps!r}; form={form!r} knows {', '.join(STEPS[form])}."
            )
        for name, value in (("warm", warm), ("updates", updates), ("batch", batch)):
            if value is not None and value < 1:
                raise InvalidInputError(f"{name}={value}; choose at least 1.")
        self.form, self.steps, self.learns_from_data = form, steps, form == "training"
        self.warm, self.updates, self.batch = warm, updates, batch

    def formats(self, job: Job) -> dict[str, Format | None]:
        """The policy's bits on TDQ's grids, for every activation but the softmax output."""
        if not isinstance(job.activations, int):
            raise InvalidInputError(
                f"activations={job.activations!r}: tdq places its own uniform grids on "
                "activations. Give a number of bits, 2 to 8."
            )
        chosen, silu = super().formats(job), behind_silu(job)
        for site in job.sites("activation"):
            fmt = chosen[site]
            if isinstance(fmt, Affine) and fmt.variant == "asymmetric":
                chosen[site] = Grid(fmt.bits, site in silu)
        return chosen

    def fit(self, job: Job) -> list[Phase]:
        """Weights as usual and activations static; then by the timestep, or all in training."""
        phases: list[Phase] = super().fit(job)
        if self.form == "training":
            how = PROFILES[job.profile]
            how = replace(how, updates=self.updates or how.updates, batch=self.batch or how.batch)
            sites, d = sites_on_grids(job), encoding_width(job.denoiser)
            start = PlaceSteps("static", (1, 1))
            return [*phases, start, TrainSteps(sites, how, d, self.steps == "network")]
        if self.steps == "min-max":
            return phases
        warm, updates = UPDATES[job.profile]
        return [*phases, PlaceSteps(self.steps, (self.warm or warm, self.updates or updates))]


METHOD = Tdq
