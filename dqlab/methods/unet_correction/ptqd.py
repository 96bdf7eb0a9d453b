"""PTQD: Accurate Post-Training Quantization for Diffusion Models.

Yefei He, Luping Liu, Jing Liu, Weijia Wu, Hong Zhou, Bohan Zhuang. NeurIPS 2023, arXiv 2305.10657.

Claim: the error D = eps_q - eps of the quantized prediction is, at every timestep, a multiple of
the true prediction plus a residual that is nearly Gaussian, and both can be taken out while
sampling, at no cost.

    k   = max(Cov(D, eps) / Var(eps), 0)                     correlated part, per step
    D'  = D - k eps,   mu = mean D' per channel,   s^2 = Var(D' - mu)
    e   = (eps_q - mu) / (1 + k)                             corrected prediction
    x_p = sqrt(a_p) x_0(e) + sqrt(1 - a_p - sigma^2) e + sigma' z
    sigma'^2 = max(sigma^2 - lambda^2 s^2, 0)                variance schedule calibration
    lambda   = (sqrt(1 - a_p - sigma^2) - sqrt(a_p (1 - a_t) / a_t)) / (1 + k)

The residual's variance replaces a part of the sampler's own. With eta = 0 the sampler adds none,
so only k and mu act. Elements whose x_0 the sampler clips get the residual through the direction
term alone, and lambda there is sqrt(1 - a_p - sigma^2) / (1 + k), which the paper, whose models do
not clip, has no need of. The network under it may be quantized in any way; the paper's own is
BRECQ.

A second, independent idea, off unless `fewest` is given: activations get as few bits at every step
as still drown the network's noise less than the diffusion's own,

    b(t) = the smallest b with |eps| / |D_b| > a_t / (1 - a_t), or else the largest.

Each bit-width is calibrated on the steps where it is used. The released code has none of this.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.formats import Format
from dqlab.methods.correction import Correction, Step
from dqlab.methods.job import Job
from dqlab.methods.method import Paper
from dqlab.methods.predictions import (
    FittedOnPairs,
    Pairs,
    check_samples,
)
from dqlab.methods.step_bits import choose_step_bits
from dqlab.models.families import Family
from dqlab.reference import ptqd as paper


class PredictionCorrection(Correction):
    """k and mu alone. Tables: k `[T]`, mu `[T, C]`, s2 `[T]`."""

    kind = "ptqd-prediction"

    def eps(self, eps: Tensor, step: Step) -> Tensor:
        """(eps_q - mu) / (1 + k)."""
        return paper.corrected_prediction(eps, self.at("k", step), self.at("mu", step))


class PtqdCorrection(PredictionCorrection):
    """k, mu and the variance schedule. `sigma_in_direction` is "original" or "updated"."""

    kind = "ptqd"

    def noise(self, noise: Tensor, step: Step) -> Tensor:
        """Sigma' z instead of sigma z."""
        return noise * (self._calibrated(step) / step.sigma).to(noise.device)

    def sigma(self, sigma: Tensor, step: Step) -> Tensor:
        """The direction term keeps sigma; the released code puts sigma' there as well."""
        updated = self.settings["sigma_in_direction"] == "updated"
        return self._calibrated(step) if updated else sigma

    def _calibrated(self, step: Step) -> Tensor:
        k, s2 = (self.tables[name][step.index].to(step.sigma.device) for name in ("k", "s2"))
        return paper.ddim_sigma(*step.alphas, step.sigma, k, s2, step.clipped())


class Sums:
    """Streaming sums of eps, D and their products per channel, in float64: one timestep's."""

    def __init__(self) -> None:
        self.count, self.rows = 0, 0
        self.sums: Tensor | float = 0.0

    def add(self, eps: Tensor, D: Tensor) -> None:
        """See `[B, C, ...]` of both."""
        e, d = (x.double().transpose(0, 1).flatten(1) for x in (eps, D))
        self.count += e.shape[1]
        self.rows += len(eps)
        self.sums = self.sums + torch.stack([e, d, e * e, d * d, e * d]).sum(2)

    def statistics(self, signed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """(k, mu `[C]`, s2), as `dqlab.reference.ptqd` computes them from whole tensors."""
        e, d, ee, dd, ed = self.sums / self.count
        power = ee.mean() - e.mean() ** 2
        if constant := not bool(power > 1e-12 * ee.mean()):
            warnings.warn("The prediction is constant at a step: no slope there.", stacklevel=2)
        k = torch.zeros_like(power) if constant else (ed.mean() - e.mean() * d.mean()) / power
        k = k if signed else k.clamp(min=0)
        mu = d - k * e
        variance = (dd - d * d) - 2 * k * (ed - e * d) + k * k * (ee - e * e)
        return k, mu, variance.mean().clamp(min=0)


class Ptqd(FittedOnPairs):
    """Acts while sampling; put it behind any method that quantizes the network.

    Args:
        vsc: calibrate the variance schedule of a DDIM sampler. Samplers that draw no noise have
            none to lower; those that draw it in another way are refused.
        sigma_in_direction: "original", where the noise adds up exactly, or "updated", which puts
            the reduced sigma into the direction term too, as the released sampler does.
        signed: keep negative slopes, which the paper sets to zero.
        samples: trajectories behind the statistics; default 64 ("teach") or 512
            ("paper"; the paper itself has 1,024). They make a slope sure, not the elements:
            those of one picture share its slope.
        fewest: choose between so many activation bits and those asked for at every step, by the
            signal-to-noise rule; this adds to what another method placed.

    """

    slug = "ptqd"
    paper = Paper(
        "PTQD: Accurate Post-Training Quantization for Diffusion Models",
        "NeurIPS 2023",
        "2305.10657",
    )
    category = "1.5"
    adds = ("place",)

    def __init__(
        self,
        vsc: bool = True,
        sigma_in_direction: str = "original",
        signed: bool = False,
        samples: int | None = None,
        fewest: int | None = None,
    ):
        if sigma_in_direction not in ("original", "updated"):
            raise InvalidInputError(
                f"sigma_in_direction={sigma_in_direction!r}; choose 'original' or 'updated'."
            )
        check_samples(samples)
        self.vsc, self.sigma_in_direction = vsc, sigma_in_direction
        if fewest is not None and not 2 <= fewest <= 7:
            raise InvalidInputError(f"fewest={fewest}; choose 2 to 7 bits, or None.")
        self.signed, self.samples, self.fewest = signed, samples, fewest

    @property
    def lowers_noise(self) -> bool:
        """By variance schedule calibration."""
        return self.vsc

    def unfit(self, family: Family) -> str | None:
        """Variance calibration needs a sampler that takes its noise from outside."""
        if self.vsc and not family.has_eta:
            return (
                "its sampler takes no noise from outside. Use recipe('ptqd', vsc=False), or a "
                "DDIMPipeline with eta=1, which samples as DDPM."
            )
        return None

    def acts(self) -> tuple[str, ...]:
        """While sampling; at `place` too if steps choose their bits."""
        return ("correct",) if self.fewest is None else ("place", "correct")

    def formats(self, job: Job) -> dict[str, Format | None]:
        """As the method beneath has them; the bits of steps come with their ranges."""
        if not isinstance(job.activations, int) or not self.fewest < job.activations:
            raise InvalidInputError(
                f"activations={job.activations!r}, fewest={self.fewest}: ptqd chooses between two "
                "bit-widths. Ask for more activation bits than `fewest`."
            )
        return self.under.formats(job)

    def ranges(self, job: Job, sites: Sequence[str]) -> None:
        """As the method beneath finds them, for every bit-width on the steps that use it."""
        self.under.ranges(job, sites)
        if set(sites) & set(job.sites("activation")):
            choose_step_bits(job, self.under, sites, (self.fewest, job.activations))

    def fitted(self, pairs: Pairs, steps: int) -> Correction:
        """Statistics of the error over the prediction at every step."""
        sums = [Sums() for _ in range(steps)]
        for index, eps, eps_q in pairs:
            sums[index].add(eps, eps_q - eps)
        return self._tables(sums)

    def _tables(self, sums: list[Sums]) -> Correction:
        k, mu, s2 = (
            torch.stack(t).float()
            for t in zip(*(one.statistics(self.signed) for one in sums), strict=True)
        )
        tables = {"k": k, "mu": mu, "s2": s2}
        if bool((1 + k <= 0).any()):
            step = int((1 + k <= 0).nonzero()[0])
            raise InvalidInputError(
                f"At step {step} the slope is {float(k[step]):.3g}, so 1 + k is not positive and "
                "the prediction cannot be divided by it. Use more bits, or signed=False."
            )
        if not self.vsc:
            return PredictionCorrection(tables)
        return PtqdCorrection(tables, sigma_in_direction=self.sigma_in_direction)


METHOD = Ptqd
