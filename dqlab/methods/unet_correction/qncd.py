"""QNCD: Quantization Noise Correction for Diffusion Models.

Huanpeng Chu, Wei Wu, Chengjie Zang, Kun Yuan. ACM MM 2024, arXiv 2403.19140.

Claim: there are two noises. Inside one call, the timestep embedding scales the channels of a
residual block so differently that one range in front of the block's second convolution is coarse.
It depends on the timestep alone, so factors that even it out need no pictures:

    S_c = mean_t |1 + scale_t,c|         if u = SiLU((gamma GN(h) + beta)(1 + scale) + shift)
    S_c = mean_t |gamma_c GN(emb_t)_c|   if u = SiLU(gamma GN(h + emb) + beta)
    u' = u / S,   W2' = W2 S             S >= floor

Between calls, error piles up. Now and then the sample just made is noised again with known noise
z1, and the network is asked to find it; the mean of what it finds too much is taken out:

    x_hat = sqrt(a_t / a_p) x_p + sqrt(1 - a_t / a_p) z1
    m <- mean(eps_q(x_hat, t) - z1)
    e <- e - m           at this step and those that follow; m = 0 before the first estimate

An estimate costs a network call, 1 in `interval`. Element by element it says little: an ideal
network answers the noise that x_hat holds in all, not z1 ("composite" compares with that, dqlab's
own ablation, and sees only the bias that this call adds). Late estimates hold image content.

This follows the abstract, a published summary of the smoothing formulas and the released code,
not the paper's full text. From the code: when it estimates, and variant="code". Left out from it:
a factor's sign (it would turn channels over), scales normalised twice, and the lower sampler noise
that it computes and does not use. Its range search, AdaRound and step sizes are other methods':
put them beside it.
"""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.layers import smooth_layer
from dqlab.methods.corrected import check_sampler
from dqlab.methods.correction import Correction, Step
from dqlab.methods.job import Job
from dqlab.methods.method import Method, Paper
from dqlab.models.families import Sampler
from dqlab.reference import qncd as paper
from dqlab.trajectory import replay

CONDITIONS = 8
"""Calibration rows whose labels or captions the embedding is averaged over."""
FEWEST = 4096
"""Elements of a sample below which the mean of noise is no estimate of a bias."""


class RunningBias(Correction):
    """Estimates the bias of the prediction now and then, and subtracts it from then on.

    `step.state["estimates"]` lists what was estimated in a run.
    """

    kind = "qncd"
    remembers = True

    def __init__(self, tables: dict[str, Tensor], **settings):
        super().__init__(tables, **settings)
        self.calls = sum(map(self._fires, range(settings["steps"])))

    def _fires(self, i: int) -> bool:
        s = self.settings
        return paper.fires(i, s["steps"], s["interval"], s["offset"])

    def eps(self, eps: Tensor, step: Step) -> Tensor:
        """E - m, with a new m where it is time for one."""
        found = step.state.setdefault("estimates", [])
        if self._fires(step.index):
            found.append(self._estimate(eps, step))
        return eps - found[-1] if found else eps

    def _estimate(self, e: Tensor, step: Step) -> Tensor:
        if e.numel() < FEWEST:
            warnings.warn(
                f"qncd estimates a bias from {e.numel()} elements, fewer than {FEWEST}: mostly "
                "noise. Sample more pictures at once.",
                stacklevel=2,
            )
        following = int(step.scheduler.timesteps[step.index + 1])
        a_t, a_p = step.scheduler.alphas_cumprod[[step.t, following]].to(e)
        z1 = torch.randn(e.shape, generator=step.generator).to(e)
        answer = step.predict(paper.renoise(step.follow(e), a_t, a_p, z1), step.t)
        if self.settings["target"] == "composite":
            z1 = paper.composite_noise(e, a_t, a_p, z1)
        return paper.estimated_bias(answer, z1).to(e)


class Qncd(Method):
    """Smooths what the timestep embedding stretches; estimates the bias while sampling.

    `recipe("qncd").only("reshape")` is the smoothing alone, `.only("correct")` the estimate.

    Args:
        variant: the factors of blocks that add the embedding: "paper" or "code".
        floor: factors are not below it; 0 for none. Below 1 small channels are amplified.
        interval: I, steps from one estimate to the next.
        offset: estimate at steps i with i mod I = offset; None for the released code's choice.
        target: what the network's answer is compared with: "injected" noise, or "composite".

    """

    slug = "qncd"
    paper = Paper(
        "QNCD: Quantization Noise Correction for Diffusion Models", "ACM MM 2024", "2403.19140"
    )
    category = "1.5"

    def __init__(
        self,
        variant: str = "paper",
        floor: float = 1.0,
        interval: int = 10,
        offset: int | None = None,
        target: str = "injected",
    ):
        if variant not in ("paper", "code") or target not in ("injected", "composite"):
            raise InvalidInputError(
                f"variant={variant!r}, target={target!r}; choose paper or code, and injected or "
                "composite."
            )
        if interval < 1 or not 0 <= (offset or 0) < interval or floor < 0:
            raise InvalidInputError(
                f"interval={interval}, offset={offset}, floor={floor}; choose an interval of at "
                "least 1 step, an offset from 0 to below it, and a floor that is not negative."
            )
        self.variant, self.floor, self.target = variant, floor, target
        self.interval, self.offset = interval, offset

    def reshape(self, job: Job) -> None:
        """Smooth the second convolution of every residual block that reads the timestep."""
        blocks = dict(timed_blocks(job.denoiser))
        convs = [id(block.conv2) for block in blocks.values()]
        if not blocks or len(set(convs)) < len(convs):
            raise NotApplicableError(
                f"This {type(job.denoiser).__name__} has no residual block that reads the "
                "timestep and has a second convolution of its own, so qncd has nothing to "
                "smooth. Use recipe('qncd').without('reshape')."
            )
        for path, emb in embeddings(job, blocks).items():
            if not bool(emb.isfinite().all()):
                raise InvalidInputError(
                    f"The timestep embedding of {path} is not finite; check the model's weights."
                )
            S = self.factors(blocks[path], emb).clamp(min=self.floor)
            smooth_layer(blocks[path].conv2, S, f"{path}.conv2")

    def factors(self, block: nn.Module, emb: Tensor) -> Tensor:
        """S `[C]` of a residual block from its projected embeddings `[T, C or 2 C]`."""
        if block.time_embedding_norm == "scale_shift":
            return paper.smoothing_scale_shift(emb.chunk(2, 1)[0])
        norm = block.norm2
        rule = paper.smoothing_additive
        if self.variant == "code":
            rule = paper.smoothing_additive_code
        return rule(emb, norm.weight.detach(), norm.num_groups, norm.eps)

    def check_sampler(self, pipe: Any, sampler: Sampler) -> None:
        """A scheduler whose samples can be noised again, and whose steps can be told apart."""
        check_sampler(self.slug, pipe, sampler)
        if float(getattr(pipe.scheduler, "init_noise_sigma", 1)) != 1:
            raise NotApplicableError(
                f"{type(pipe.scheduler).__name__} keeps its samples at another scale than the "
                "network's input, so qncd cannot noise one again. Use a scheduler that starts "
                "from unit noise, such as DDIM or DPMSolverMultistep, or "
                "recipe('qncd').without('correct')."
            )

    def correct(self, job: Job) -> Correction:
        """Nothing is fitted: the estimate is made while sampling."""
        self.check_sampler(job.original, job.sampler)
        made = RunningBias(
            {},
            steps=len(job.context.schedule),
            interval=self.interval,
            offset=self.offset,
            target=self.target,
        )
        if not made.calls:
            warnings.warn(
                f"With interval={self.interval} qncd estimates nothing in "
                f"{len(job.context.schedule)} steps. Choose a shorter one.",
                stacklevel=2,
            )
        return made


def timed_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Residual blocks that add a projected timestep embedding, or scale and shift by it."""
    for path, module in model.named_modules():
        known = getattr(module, "time_embedding_norm", None) in ("default", "scale_shift")
        if known and getattr(module, "time_emb_proj", None) is not None:
            yield path, module


def embeddings(job: Job, blocks: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Every block's projected embedding at all of the sampler's timesteps, `[T x rows, ...]`."""
    schedule = job.family.schedule(job.original, job.sampler).to(job.calibration.t)
    count = CONDITIONS if job.calibration.conditions else 1
    rows = torch.linspace(0, len(job.calibration) - 1, count).long()
    states = job.calibration[rows.repeat_interleave(len(schedule))]
    found: dict[str, list[Tensor]] = {path: [] for path in blocks}
    handles = [
        block.time_emb_proj.register_forward_hook(lambda m, x, emb, p=path: found[p].append(emb))
        for path, block in blocks.items()
    ]
    try:
        replay(job.denoiser, replace(states, t=schedule.repeat(count)))
    finally:
        for handle in handles:
            handle.remove()
    return {path: torch.cat(parts).detach() for path, parts in found.items()}


METHOD = Qncd
