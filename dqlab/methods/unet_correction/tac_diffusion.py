"""TAC-Diffusion: Timestep-Aware Correction for Quantized Diffusion Models.

Yuzhe Yao, Feng Tian, Jun Chen, Haonan Lin, Guang Dai, Yong Liu, Jingdong Wang. ECCV 2024,
arXiv 2407.03917.

Claim: errors of a quantized model pile up because an error made at one step is carried into all
later inputs, and because the network then meets inputs it never sees in full precision. Two
tables, found offline and used at no cost, correct both at every timestep:

    K_t = argmin (1 - l1) mean (K q - r)^2 + l1 mean m ((K q - r) / r)^2 + l2 (K - 1)^2
                                          noise estimation reconstruction, per channel
    B_t = mean_n (xq_t - x_t)             input bias correction, over paired chains
    online: x <- x_t - B_t,  e = K_t q(x),  sampler step from x

xq is the quantized chain with all corrections of earlier steps at work, so the tables are found
one after the other, from noise to image. The two chains share initial noise and sampler noise, so
stochastic samplers may be used.

The authors published no code and this follows summaries of the paper. As stated there: the two
components, the masked loss of error and relative error with its closed form, tables per timestep
(K per channel), B over a mini-batch of paired chains. Decided here: the mask, |r| > tau mean |r|,
without which the relative term diverges; K near 1 by l2; both predictions on the corrected
quantized input ("same_input"); K applied to all elements; B per element.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from dqlab import seeds
from dqlab.errors import InvalidInputError
from dqlab.methods.corrected import check_sampler
from dqlab.methods.correction import Correction, Step
from dqlab.methods.corrector import Corrector
from dqlab.methods.job import Job
from dqlab.methods.method import Method, Paper
from dqlab.methods.predictions import check_samples
from dqlab.methods.run import with_corrector
from dqlab.models.families import Sampler
from dqlab.reference import tac_diffusion as paper
from dqlab.trajectory import record

PLAUSIBLE = (0.5, 2.0)
"""A coefficient outside says that quantization broke the network."""


class Reconstruction(Correction):
    """K alone. Tables: K `[T, C]`."""

    kind = "tac-reconstruction"

    def eps(self, eps: Tensor, step: Step) -> Tensor:
        """K q, on elements larger than `apply_threshold` times the mean size."""
        K = self.at("K", step).reshape(-1, *[1] * (eps.ndim - 2))
        threshold = self.settings["apply_threshold"]
        if not threshold:
            return K * eps
        size = eps.abs().mean(tuple(range(2, eps.ndim)), keepdim=True)
        return torch.where(eps.abs() > threshold * size, K * eps, eps)


class InputBias(Correction):
    """B alone. Tables: B `[T, C, H, W]` or `[T, C, 1, 1]`."""

    kind = "tac-input-bias"

    def before(self, x: Tensor, step: Step) -> Tensor:
        """The sample less B."""
        B = self.at("B", step)
        if any(mine not in (1, its) for mine, its in zip(B.shape, x.shape[1:], strict=True)):
            raise InvalidInputError(
                f"The input bias was fitted on samples of {tuple(B.shape)}, but this one is "
                f"{tuple(x.shape[1:])}. Sample at that size, or quantize with "
                "recipe('tac-diffusion', granularity='channel')."
            )
        return x - B


class TacCorrection(Reconstruction, InputBias):
    """Both."""

    kind = "tac-diffusion"


class Fitting(TacCorrection):
    """What runs while the tables are found: each step's is fitted where it is first needed."""

    kind = "tac-diffusion-fitting"

    def __init__(self, method: "TacDiffusion", chain: Tensor, answers: Tensor):
        super().__init__({}, apply_threshold=method.apply_threshold)
        self.method, self.chain, self.answers = method, chain, answers
        self.found: dict[str, list[Tensor]] = {"K": [], "B": []}
        self.full: Any = None

    def at(self, name: str, step: Step) -> Tensor:
        """The table's row, as found at this step."""
        return self.found[name][step.index]

    def before(self, x: Tensor, step: Step) -> Tensor:
        """Find B from the chain so far, then use it."""
        B = paper.input_bias(x, self.chain[step.index], self.method.granularity)
        self.found["B"].append(B if self.method.ibc else torch.zeros_like(B))
        return super().before(x, step)

    def eps(self, eps: Tensor, step: Step) -> Tensor:
        """Find K on the corrected input, then use it."""
        if not self.method.ner:
            self.found["K"].append(torch.ones(eps.shape[1]).to(eps))
            return eps
        same = self.method.pairing == "same_input"
        r = self.full(step.x, step.t) if same else self.answers[step.index]
        self.found["K"].append(self.method.coefficient(eps, r, step.index))
        return super().eps(eps, step)


class PairedCorrector(Corrector):
    """A corrector that can ask the full-precision network too."""

    def full(self, network: Any, x: Tensor, t: Any) -> Tensor:
        """Its guided prediction, with the conditions of the quantized network's last call."""
        quantized, self.network = self.network, network
        try:
            return self._guided(x, t)
        finally:
            self.network = quantized


class TacDiffusion(Method):
    """Acts while sampling; put it behind any method that quantizes the network.

    Args:
        ner: correct the prediction by K (noise estimation reconstruction).
        ibc: correct the input by B (input bias correction).
        lambda1: weight of the relative error, 0 to 1.
        lambda2: weight that keeps K near 1.
        tau: the relative error counts where |r| exceeds tau times its mean.
        pairing: full-precision predictions on the "same_input", or on their own "trajectory".
        granularity: B per "element", for pictures that share a layout, or per "channel".
        apply_threshold: K acts where |q| exceeds this many times its mean; 0 for everywhere.
        samples: paired chains, run as one batch.

    """

    slug = "tac-diffusion"
    paper = Paper(
        "Timestep-Aware Correction for Quantized Diffusion Models", "ECCV 2024", "2407.03917"
    )
    category = "1.5"

    def __init__(
        self,
        ner: bool = True,
        ibc: bool = True,
        lambda1: float = 0.5,
        lambda2: float = 0.1,
        tau: float = 1.0,
        pairing: str = "same_input",
        granularity: str = "element",
        apply_threshold: float = 0.0,
        samples: int = 64,
    ):
        if pairing not in ("same_input", "trajectory"):
            raise InvalidInputError(f"pairing={pairing!r}; choose same_input or trajectory.")
        if granularity not in ("element", "channel"):
            raise InvalidInputError(f"granularity={granularity!r}; choose element or channel.")
        if not (ner or ibc):
            raise InvalidInputError("ner=False and ibc=False leave nothing to do; keep one.")
        if not 0 <= lambda1 <= 1 or min(lambda2, tau, apply_threshold) < 0:
            raise InvalidInputError(
                f"lambda1={lambda1}, lambda2={lambda2}, tau={tau}, "
                f"apply_threshold={apply_threshold}; lambda1 lies in [0, 1], none is negative."
            )
        check_samples(samples)
        self.ner, self.ibc, self.pairing, self.granularity = ner, ibc, pairing, granularity
        self.lambda1, self.lambda2, self.tau = lambda1, lambda2, tau
        self.apply_threshold, self.samples = apply_threshold, samples

    def check_sampler(self, pipe: Any, sampler: Sampler) -> None:
        """A scheduler whose steps can be told apart."""
        check_sampler(self.slug, pipe, sampler)

    def correct(self, job: Job) -> Correction:
        """Run the quantized chain beside the full-precision one, a step's tables at a time."""
        self.check_sampler(job.original, job.sampler)
        chosen = seeds.CALIBRATION[: self.samples]
        states, _ = record(job.original, chosen, job.sampler, batch_size=len(chosen))
        answers, rows = states.guided(states.output)
        count = len(job.context.schedule)
        chain, answers = (x.unflatten(0, (count, -1)) for x in (states.x[rows], answers))
        fitting = Fitting(self, chain, answers)
        corrector = PairedCorrector(
            fitting, job.family, job.sampler, job.context.schedule, job.seed
        )
        original = job.family.denoiser(job.original)
        fitting.full = lambda x, t: corrector.full(original, x, t)
        job.family.run(with_corrector(job, corrector), job.sampler, chosen)
        return self._made(fitting.found)

    def _made(self, found: dict[str, list[Tensor]]) -> Correction:
        K, B = (torch.stack(found[name]).float() for name in ("K", "B"))
        setting = {"apply_threshold": self.apply_threshold}
        if not self.ibc:
            return Reconstruction({"K": K}, **setting)
        return TacCorrection({"K": K, "B": B}, **setting) if self.ner else InputBias({"B": B})

    def coefficient(self, q: Tensor, r: Tensor, index: int) -> Tensor:
        """K of step `index`, `[C]`."""
        if not bool((q.isfinite() & r.isfinite()).all()):
            raise InvalidInputError(
                f"A prediction at step {index} is not finite, so tac-diffusion cannot be fitted. "
                "Use more bits, or check the model."
            )
        sums = paper.reconstruction_sums(q, r, paper.relative_mask(r, self.tau))
        K = paper.reconstruction_coefficient(sums, self.lambda1, self.lambda2).to(q)
        low, high = PLAUSIBLE
        if not bool(((low <= K) & (high >= K)).all()):
            warnings.warn(
                f"At step {index} a reconstruction coefficient is {float(K.min()):.3g} to "
                f"{float(K.max()):.3g}: quantization broke the network. Use more bits.",
                stacklevel=2,
            )
        return K


METHOD = TacDiffusion
