"""D2-DPM: Dual Denoising for Quantized Diffusion Probabilistic Models.

Qian Zeng, Jie Song, Han Zheng, Hao Jiang, Mingli Song. AAAI 2025, arXiv 2501.08180.

Claim: at every timestep the quantized prediction Eq and its error D = Eq - E are nearly jointly
normal, and Eq is known while sampling. So the error's law given Eq is known too, and can be taken
out before the sampler takes out the diffusion's noise: a dual denoising.

    mu_c = mu_D + b (Eq - mu_q),   b = v_qD / v_qq           conditional mean
    v_c  = v_DD - v_qD^2 / v_qq                              conditional variance
    deterministic:  e = Eq - mu_c,   sigma'^2 = max(sigma^2 - k^2 v_c, 0)
                    k = sqrt(1 - a_p - sigma^2) - sqrt(a_p (1 - a_t) / a_t)
    stochastic:     e = Eq - mu_c - sqrt(v_c) z',   z' ~ N(0, I)
    x_p = sqrt(a_p) x_0(e) + sqrt(1 - a_p - sigma'^2) e + sigma' z

PTQD regresses D on the true prediction, which is unknown while sampling; this regresses on what
is known. What follows from the model: the deterministic e is the least-squares estimate of E,
with error variance v_c and a variance that is v_c too small. The stochastic e has the law of E,
and error variance 2 v_c: its SQNR lies 3.01 dB lower. With eta = 0 the sampler adds no noise, so
that sigma' does nothing. Where the sampler clips x_0, k is the first root alone.

From the released code, not in the paper: pairs with |D - mean D| > 4 std D are left out. The code
reads the wrong channel's sigma in the channel-wise form and silently goes on at unknown timesteps;
here channels are independent and unknown timesteps are refused. It also keeps the correlation
below 0.9999; here v_c is kept from falling below 0. Not included: its resampling of calibration
timesteps.
"""

import warnings

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.methods.correction import Correction, Step
from dqlab.methods.method import Paper
from dqlab.methods.predictions import (
    FittedOnPairs,
    Pairs,
    check_samples,
)
from dqlab.models.families import Family
from dqlab.reference import d2_dpm as paper
from dqlab.reference.d2_dpm import Joint

FEWEST = 1000
"""Elements per step and channel below which the statistics are called noisy."""


class MeanCorrection(Correction):
    """The conditional mean alone. Tables mu_q, mu_D, b, v_c: `[T]`, or `[T, C]` per channel."""

    kind = "d2-dpm-mean"

    def eps(self, eps: Tensor, step: Step) -> Tensor:
        """Eq - mu_c."""
        mu_q, mu_D, b = (self.wide(name, step) for name in ("mu_q", "mu_D", "b"))
        return eps - paper.conditional_mean(eps, mu_q, mu_D, b)

    def wide(self, name: str, step: Step) -> Tensor:
        """A table's row shaped to broadcast against the sample."""
        row = self.at(name, step)
        if row.numel() not in (1, step.x.shape[1]):
            raise InvalidInputError(
                f"{self.kind} has {row.numel()} channels in its tables, but the sample has "
                f"{step.x.shape[1]}. Use the pipeline it was fitted for."
            )
        return row.reshape(-1, *[1] * (step.x.ndim - 2))


class StochasticCorrection(MeanCorrection):
    """S-D2: the conditional mean and a draw of what is left."""

    kind = "d2-dpm-stochastic"

    def eps(self, eps: Tensor, step: Step) -> Tensor:
        """Eq - mu_c - sqrt(v_c) z', with z' from the correction's own generator."""
        z = torch.randn(eps.shape, generator=step.generator).to(eps)
        return super().eps(eps, step) - self.wide("v_c", step).sqrt() * z


class DeterministicCorrection(MeanCorrection):
    """D-D2: the conditional mean, and the sampler's noise lowered by what is left."""

    kind = "d2-dpm"

    def noise(self, noise: Tensor, step: Step) -> Tensor:
        """Sigma' z instead of sigma z."""
        return noise * (self._lowered(step) / step.sigma).to(noise)

    def sigma(self, sigma: Tensor, step: Step) -> Tensor:
        """Sigma' in the direction term too, as in the paper's algorithm 1."""
        updated = self.settings["sigma_in_direction"] == "updated"
        return self._lowered(step) if updated else sigma

    def _lowered(self, step: Step) -> Tensor:
        v_c = self.wide("v_c", step).to(step.sigma)
        return paper.ddim_sigma(*step.alphas, step.sigma, v_c, step.clipped())


class D2Dpm(FittedOnPairs):
    """Acts while sampling; put it behind any method that quantizes the network.

    Args:
        mode: "deterministic" or "stochastic".
        granularity: "tensor" as in the paper's text; "channel" as the released code runs.
        variance: let a DDIM sampler's noise absorb the conditional variance (deterministic mode).
            Samplers that draw no noise have none to lower; those that draw it in another way are
            refused.
        sigma_in_direction: "updated" as in the paper; "original" keeps the sampler's sigma in
            the direction term, where the variances then add up.
        trim: leave out errors beyond so many standard deviations; None keeps all.
        samples: trajectories behind the statistics; default 64 ("teach") or 512 ("paper"; the
            released code has 1,024). Predictions of all of them are held in memory at once.

    """

    slug = "d2-dpm"
    paper = Paper(
        "D2-DPM: Dual Denoising for Quantized Diffusion Probabilistic Models",
        "AAAI 2025",
        "2501.08180",
    )
    category = "1.5"

    def __init__(
        self,
        mode: str = "deterministic",
        granularity: str = "tensor",
        variance: bool = True,
        sigma_in_direction: str = "updated",
        trim: float | None = 4.0,
        samples: int | None = None,
    ):
        for name, value, allowed in (
            ("mode", mode, ("deterministic", "stochastic")),
            ("granularity", granularity, ("tensor", "channel")),
            ("sigma_in_direction", sigma_in_direction, ("updated", "original")),
        ):
            if value not in allowed:
                raise InvalidInputError(f"{name}={value!r}; choose one of {', '.join(allowed)}.")
        if trim is not None and not trim > 0:
            raise InvalidInputError(
                f"trim={trim}; choose a positive number of deviations, or None."
            )
        check_samples(samples)
        self.mode, self.granularity, self.variance = mode, granularity, variance
        self.sigma_in_direction, self.trim, self.samples = sigma_in_direction, trim, samples

    @property
    def lowers_noise(self) -> bool:
        """By the conditional variance, unless that is drawn."""
        return self.mode == "deterministic" and self.variance

    def unfit(self, family: Family) -> str | None:
        """Lowering the sampler's noise needs a sampler that takes it from outside."""
        if self.lowers_noise and not family.has_eta:
            return (
                "its sampler takes no noise from outside. Use recipe('d2-dpm', variance=False), "
                "or a DDIMPipeline with eta=1, which samples as DDPM."
            )
        return None

    def fitted(self, pairs: Pairs, steps: int) -> Correction:
        """A joint law of prediction and error at every step."""
        seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(steps)]
        for index, eps, eps_q in pairs:
            seen[index].append((eps_q, eps_q - eps))
        laws = [
            self._law(index, *map(torch.cat, zip(*s, strict=True))) for index, s in enumerate(seen)
        ]
        mu_q, mu_D, v_qq, v_qD, v_DD = map(torch.stack, zip(*laws, strict=True))
        tables = {
            "mu_q": mu_q,
            "mu_D": mu_D,
            "b": paper.slope(v_qq, v_qD),
            "v_c": paper.conditional_variance(v_qq, v_qD, v_DD),
        }
        return self._made({name: table.float() for name, table in tables.items()})

    def _made(self, tables: dict[str, Tensor]) -> Correction:
        if self.mode == "stochastic":
            return StochasticCorrection(tables)
        if not self.variance:
            return MeanCorrection(tables)
        return DeterministicCorrection(tables, sigma_in_direction=self.sigma_in_direction)

    def _law(self, index: int, Eq: Tensor, D: Tensor) -> Joint:
        """The joint law of one step, from `[N, C, ...]` of both."""
        if not bool((Eq.isfinite() & D.isfinite()).all()):
            raise InvalidInputError(
                f"A prediction at step {index} is not finite, so d2-dpm cannot be fitted. Use "
                "more bits, or check the model."
            )
        rows = [x.transpose(0, 1).flatten(1) for x in (Eq, D)]
        if self.granularity == "tensor":
            rows = [x.flatten() for x in rows]
        elif rows[0].shape[1] < FEWEST and index == 0:  # all steps have as many
            warnings.warn(
                f"d2-dpm fits each channel to {rows[0].shape[1]} elements a step, fewer than "
                f"{FEWEST}: a noisy estimate. Use more samples or granularity='tensor'.",
                stacklevel=3,
            )
        keep = None if self.trim is None else paper.kept(rows[1], self.trim)
        law = paper.joint(*rows, keep)
        if bool((law.v_qq <= 1e-12 * law.mu_q.square()).any()):
            raise InvalidInputError(
                f"The quantized prediction is constant at step {index}, so nothing can be read "
                "off it. Use more bits."
            )
        return law


METHOD = D2Dpm
