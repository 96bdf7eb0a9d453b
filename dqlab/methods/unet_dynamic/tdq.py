"""TDQ: Temporal Dynamic Quantization for Diffusion Models.

Junhyuk So, Jungwon Lee, Daehyun Ahn, Hyungjun Kim, Eunhyeok Park. NeurIPS 2023, arXiv 2306.02316.

Claim: the timestep alone says how wide an activation is, so its step size can follow the timestep
at no cost. Every activation quantizer owns a small network; after training, its answers at the
sampler's steps are a table, and inference is as cheap as static quantization.

    s(t) = softplus(W4 ReLU(W3 ReLU(W2 ReLU(W1 e(t) + b1) + b2) + b3) + b4)
    e(t) = [cos(t w_i), sin(t w_i)],  w_i = 10000^(-i / (d / 2)),  d -> 64 -> 64 -> 64 -> 1
    x_hat = s round(clip(x / s, -Q, Q)),  Q = 2^(b-1) - 1
    x_hat = s round(clip((x - m) / s, 0, 2^b - 1)) + m   behind SiLU, whose minimum is m

The post-training form, whose procedure the authors have not published, is: with the weights as
they are, every network minimises, over the steps of full-precision trajectories,

    E_t [ mean (x - x_hat(s(t)))^2 / mean x^2 ]

with LSQ's gradient to s, after a warm start at each step's best static s. Weights are rounded as
usual. The softmax output keeps one static range: it is bounded and the paper leaves it alone.

Not included: the paper's main form, quantization-aware training of weights, weight step sizes and
these networks together on the diffusion loss; it needs the training data. Its trainable part is
`dqlab.methods.step_networks` (with `dropout=0.2`), which gradients reach through
`Grid.fake_quant`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Format, Range
from dqlab.formats.base import SMALLEST_SCALE
from dqlab.layers import quantizers
from dqlab.methods.job import Job
from dqlab.methods.method import Method, Paper, Phase, observe
from dqlab.methods.step_networks import fit_networks
from dqlab.ranges.rows import check_finite
from dqlab.reference import tdq as paper
from dqlab.trajectory import tapped

VALUES = 8192
"""Kept per site and step: an 8-bit grid needs the tails, which 2,048 values hardly have."""
UPDATES = {"teach": (200, 300), "paper": (500, 1000)}
"""Warm start, fit."""


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


class Samples:
    """An observer that keeps `VALUES` random values of one site at every step."""

    def __init__(self, site: str, job: Job):
        self.site, self.context = site, job.context
        steps = (job.calibration.t[:, None] == job.context.schedule).int().argmax(1)
        self.rows = steps.bincount(minlength=len(job.context.schedule)).tolist()
        self.generator = torch.Generator().manual_seed(job.seed)
        self.kept: list[list[Tensor]] = [[] for _ in self.rows]

    def update(self, x: Tensor) -> None:
        """See one batch."""
        check_finite(x, self.site)
        steps = self.context.steps_of(len(x), self.site)
        for step in steps.unique().tolist():
            mine = x[steps == step].flatten()
            share = VALUES * int((self.context.step == step).sum()) / self.rows[step]
            chosen = torch.randint(len(mine), (max(1, round(share)),), generator=self.generator)
            self.kept[step].append(mine[chosen.to(mine.device)].float().cpu())

    def values(self) -> Tensor:
        """`[T, VALUES]`."""
        if missing := [step for step, kept in enumerate(self.kept) if not kept]:
            raise InvalidInputError(
                f"{self.site}: no calibration data at sampling steps {missing}, so their step "
                "sizes are unknown. Calibrate on whole trajectories of the same sampler."
            )
        return torch.stack([_exactly(torch.cat(kept), VALUES) for kept in self.kept])


def _exactly(x: Tensor, count: int) -> Tensor:
    return x[torch.arange(count) % len(x)]


@dataclass(frozen=True)
class GenerateSteps:
    """The fit: train the networks of all sites on a TDQ grid, then keep their table."""

    updates: tuple[int, int]
    name: str = "time-dependent step sizes"

    def run(self, job: Job) -> None:
        """Do it."""
        sites = {s: q for s, q in quantizers(job.denoiser).items() if isinstance(q.format, Grid)}
        if not sites:
            raise InvalidInputError(
                "tdq's fit found no site with one of its own grids; use it with its own 'place'."
            )
        seen = {site: Samples(site, job) for site in sites}
        observe(job, seen)
        values = torch.stack([one.values() for one in seen.values()])
        grids, t = [q.format for q in sites.values()], job.context.schedule
        d = encoding_width(job.denoiser)
        networks = fit_networks(values, grids, t, d, self.updates, job.seed)
        table = networks(t).detach().to(job.calibration.x)
        for quantizer, s in zip(sites.values(), table, strict=True):
            quantizer.set_range(Range(s, torch.zeros_like(s)), per_step=True)


def encoding_width(denoiser: nn.Module) -> int:
    """Width of the network's own timestep encoding; the paper's 128 for one that shows none."""
    from diffusers.models.embeddings import Timesteps

    found = (m.num_channels for m in denoiser.modules() if isinstance(m, Timesteps))
    return next(found, 128)


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
    """Post-training TDQ: step sizes of activations that follow the timestep, as a table.

    Args:
        warm, updates: optimiser steps of the warm start and of the fit; by default the profile's
            (200 and 300, or 500 and 1000).

    """

    slug = "tdq"
    paper = Paper(
        "Temporal Dynamic Quantization for Diffusion Models", "NeurIPS 2023", "2306.02316"
    )
    category = "1.3"

    def __init__(self, warm: int | None = None, updates: int | None = None):
        for name, value in (("warm", warm), ("updates", updates)):
            if value is not None and value < 1:
                raise InvalidInputError(f"{name}={value}; choose at least 1 optimiser step.")
        self.warm, self.updates = warm, updates

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
        """Weights as usual; activations first static, then by the timestep."""
        warm, updates = UPDATES[job.profile]
        chosen = GenerateSteps((self.warm or warm, self.updates or updates))
        return [*super().fit(job), chosen]


METHOD = Tdq
