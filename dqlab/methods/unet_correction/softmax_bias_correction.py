"""Softmax Bias Correction for Quantized Generative Models.

Nilesh Prasad Pandey, Marios Fournarakis, Chirag Patel, Markus Nagel. ICCV workshop 2023, arXiv
2309.01729.

Claim: attention's softmax output is kept in 16 bits because 8 hurt, and what hurts is a bias. With
thousands of keys nearly all probabilities lie below half a step and become 0, so that a row of
quantized probabilities no longer sums to 1 and the attention loses its diffuse part. A constant
per attention, measured offline and absorbed into the dequantizer's offset, gives it back:

    beta = E[P - Pq] = (1 - E[sum_j Pq_j]) / N          rows of P sum to 1
    O = (Pq + beta) V = Pq V + beta sum_j V_j           the lost mass goes to the average value

What decides is keys per level, N / 2^bits: 64 keys at 8 bits have nothing to correct, at 4 bits
much. Kept is delta = beta N, because rows with masked keys are shorter; masked keys stay 0.

The paper's method section could not be read in full and no code was published. As stated there:
the cause, the constant, its absorption. By mathematics: the formulas. Decided here: the range
[0, 1], a constant per head, and everything about masks; "row" is a control, not a method, for it
needs every row's sum at run time.

Works on whatever another method placed: combine it with any. Statistics are taken on the network
with all other quantizers at work. Where a method learns step sizes afterwards, delta stays.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.formats import Affine, Format, Range
from dqlab.formats.softmax import CorrectedSoftmax
from dqlab.layers import Quantizer, quantizers
from dqlab.methods.job import Job
from dqlab.methods.method import Method, Paper
from dqlab.trajectory import States, inactive, replay, tapped

STRIDE = 4
"""Of each guidance branch's calibration rows one in so many is looked at: the statistic is a mean
over many rows."""
ALMOST_ALL = 0.9
"""Lost mass beyond which the correction turns attention into an average."""
GRANULARITIES = ("tensor", "head", "head_timestep", "row")


class LostMass:
    """Mass that rounding takes from the rows of one attention, per head and sampling step."""

    def __init__(self, quantizer: Quantizer, steps: int):
        self.quantizer, self.steps = quantizer, steps
        self.sums: Tensor | None = None

    def update(self, P: Tensor) -> None:
        """See `[B, H, Nq, N]`; rows that see no key do not count."""
        whole = P.sum(-1)
        alive = whole != 0
        if not bool((((whole - 1).abs() < 1e-3) | ~alive).all() & (P >= 0).all()):
            raise InvalidInputError(
                f"{self.quantizer.site} is no softmax output: its rows do not sum to 1, or hold "
                "NaN. Check the model, or its attention masks."
            )
        r = self.quantizer.current(P)
        bits = self.quantizer.format.bits
        kept = (P / r.scale).round().clamp(0, 2**bits - 1).mul(r.scale).double().sum(-1)
        rows = torch.stack([((1 - kept) * alive).sum(-1), alive.double().sum(-1)])
        index = torch.zeros(len(P), dtype=torch.int64)
        if self.steps > 1:
            index = self.quantizer.context.steps_of(len(P), self.quantizer.site)
        if self.sums is None:
            self.sums = rows.new_zeros(2, self.steps, P.shape[1])
        self.sums.index_add_(1, index.to(P.device), rows)

    def delta(self) -> Tensor:
        """`[steps, H]`."""
        lost, count = self.sums
        if bool((count == 0).any()):
            step = int((count == 0).any(1).nonzero()[0])
            raise InvalidInputError(
                f"{self.quantizer.site}: no calibration data at sampling step {step}. Calibrate "
                "on whole trajectories, or use granularity='head'."
            )
        return lost / count


class SoftmaxBiasCorrection(Method):
    """Gives back the mass that rounding takes from softmax outputs; set `softmax=` bits.

    Args:
        granularity: one constant per "tensor", per "head" or, looked up by sampling step, per
            "head_timestep"; "row" computes every row's own.
        range: "unit" quantizes [0, 1]; "max" keeps the range that was found on calibration data.

    """

    slug = "softmax-bias-correction"
    paper = Paper(
        "Softmax Bias Correction for Quantized Generative Models",
        "ICCV workshop 2023",
        "2309.01729",
    )
    category = "1.5"
    adds = ("place",)

    def __init__(self, granularity: str = "head", range: str = "unit"):
        if granularity not in GRANULARITIES or range not in ("unit", "max"):
            raise InvalidInputError(
                f"granularity={granularity!r}, range={range!r}; choose one of "
                f"{', '.join(GRANULARITIES)}, and unit or max."
            )
        self.granularity, self.range = granularity, range

    def formats(self, job: Job) -> dict[str, Format | None]:
        """As the method beneath has them; softmax outputs change once they have a range."""
        return self.under.formats(job)

    def ranges(self, job: Job, sites: Sequence[str]) -> None:
        """As the method beneath finds them, and then what rows of softmax outputs lose."""
        self.under.ranges(job, sites)
        found = quantizers(job.denoiser)
        mine = [found[site] for site in sites if site.endswith(".p") and _correctable(found[site])]
        if not mine and set(sites) & set(job.sites("activation")):
            raise NotApplicableError(
                "softmax-bias-correction found no softmax output on a uniform grid without zero "
                "point. It needs a model with attention, activations and softmax in bits, such as "
                "quantize(..., activations=8, softmax=8)."
            )
        for quantizer in mine:
            self._prepare(quantizer)
        if mine and self.granularity != "row":
            self._measure(job, mine)

    def _prepare(self, quantizer: Quantizer) -> None:
        fmt = CorrectedSoftmax(int(quantizer.format.bits), self.granularity == "row")
        quantizer.format = fmt
        if self.range == "unit":
            one = torch.ones_like(quantizer.scale.flatten()[0])
            quantizer.set_range(fmt.params(torch.zeros_like(one), one))

    def _measure(self, job: Job, mine: list[Quantizer]) -> None:
        """Softmax outputs pass unquantized, so that no attention sees another's bias."""
        by_step = self.granularity == "head_timestep"
        count = len(job.context.schedule) if by_step else 1
        seen = {q.site: LostMass(q, count) for q in mine}
        states = job.calibration if by_step else thinned(job.calibration)
        with inactive(mine), tapped(job.denoiser, seen, lambda site, P: seen[site].update(P)):
            replay(job.denoiser, states)
        for quantizer in mine:
            self._give_back(quantizer, seen[quantizer.site].delta())

    def _give_back(self, quantizer: Quantizer, delta: Tensor) -> None:
        if bool((delta.abs() > ALMOST_ALL).any()):
            warnings.warn(
                f"{quantizer.site} loses {float(delta.max()):.0%} of its mass to rounding, so "
                "the correction makes it an average. Use more softmax bits, or range='max'.",
                stacklevel=2,
            )
        scale = quantizer.scale
        if self.granularity == "tensor":
            delta = delta.mean(1, keepdim=True)
        delta = delta.to(scale)[:, :, None, None]
        if self.granularity == "head_timestep" or quantizer.per_step:
            steps = max(len(delta), scale.numel())
            scale, delta = scale.expand(steps), delta.expand(steps, *delta.shape[1:])
            quantizer.set_range(Range(scale.clone(), delta.clone()), per_step=True)
        else:
            quantizer.set_range(Range(scale, delta[0]))


def thinned(states: States) -> States:
    """One in `STRIDE` rows of every guidance branch, spread over all steps."""
    branches = (states.branch == i for i in range(max(1, len(states.branches))))
    chosen = torch.cat([mine.nonzero().flatten()[::STRIDE] for mine in branches])
    return states[chosen.sort().values]


def _correctable(quantizer: Quantizer) -> bool:
    fmt = quantizer.format
    plain = isinstance(fmt, Affine) and fmt.variant == "always_zero"
    return plain or isinstance(fmt, CorrectedSoftmax)


METHOD = SoftmaxBiasCorrection
