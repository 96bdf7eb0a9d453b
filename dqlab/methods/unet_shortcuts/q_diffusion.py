"""Q-Diffusion: Quantizing Diffusion Models (Li et al., ICCV 2023, arXiv 2302.04304).

Claim: two things break plain post-training quantization of diffusion models. Activations change
over sampling steps; and a U-Net's shortcut layers read two populations at once, the deep
features X1 and the skip features X2 of a concatenation, which one range cannot serve. So
calibrate on states spread evenly over the trajectory, and quantize both parts, and the weight's
matching input channels, before they are joined:

    Q_X(X) Q_W(W) = Q_X1(X1) Q_W1(W1) + Q_X2(X2) Q_W2(W2)

With guidance the set holds every state for both branches. In Stable Diffusion the released code
keeps softmax outputs at 16 bits: policy="paper".

Then weights are rounded block by block (AdaRound in BRECQ), activation ranges are set on the
rounded network, and activation step sizes are learned against the same block outputs (LSQ).
"""

from collections.abc import Sequence
from functools import partial

import torch

from dqlab import seeds
from dqlab.errors import InvalidInputError
from dqlab.fit.profiles import ROUNDING, STEPS
from dqlab.formats import Format
from dqlab.layers import Policy, Rule
from dqlab.methods.job import Job
from dqlab.methods.method import Method, Paper, Phase, SetRanges, set_ranges
from dqlab.methods.reconstruction import Reconstruct
from dqlab.methods.splitting import split_shortcuts
from dqlab.models.families import Family
from dqlab.ranges import First, Running, min_max, shrink_search
from dqlab.reference.q_diffusion import calibration_steps
from dqlab.trajectory import States, record

CALIBRATION = {"teach": (10, 16), "paper": (20, 256)}
"""Steps m and samples per step n."""
RANGE_ROWS = 64
"""Calibration rows that activation ranges are set on, in one forward."""
RUNNING_ROWS = 16
"""Rows of a batch where ranges move on over the whole set."""
TEXT_SOFTMAX = 16


def paper_policy(softmax: int) -> Policy:
    """Sites and bits of the released code, which spares no layer, with so many softmax bits."""
    rules = (
        Rule("*.p", softmax, "softmax output, zero point 0"),
        Rule("*.weight*", "weights", "first and last layer too"),
        Rule("*", "activations", "inputs of layers; q, k and v of attention"),
    )
    return Policy("q-diffusion", rules)


class QDiffusion(Method):
    """Split shortcuts, evenly spread calibration, reconstruction.

    Args:
        split: quantize the parts of a concatenation on their own.
        search: look for ranges by least L_2.4 error, as the released scripts do on LSUN-Church
            and for Stable Diffusion; min-max otherwise, as for CIFAR-10.
        reconstruct: learn rounding and step sizes; round to nearest otherwise.
        running: activation ranges go on from the first 16 rows as a moving average over the whole
            set, as the released code has it for Stable Diffusion; else 64 rows set them.
        chained: set a layer's activation range with the layers before it quantized already, as
            the released code does; default: each on exact activations.
        steps, samples: m sampler steps and n samples of each to calibrate on; None for the
            profile's (never more steps than the sampler has).

    """

    slug = "q-diffusion"
    paper = Paper("Q-Diffusion: Quantizing Diffusion Models", "ICCV 2023", "2302.04304")
    category = "1.2"

    def __init__(
        self,
        split: bool = True,
        search: bool = True,
        reconstruct: bool = True,
        steps: int | None = None,
        samples: int | None = None,
        running: bool = False,
        chained: bool = False,
    ):
        self.split, self.search, self.reconstruct = split, search, reconstruct
        self.running, self.chained = running, chained
        self.steps, self.samples = steps, samples

    def policy(self, family: Family) -> Policy:
        """The released code's: 16 softmax bits in text-to-image models, 8 in others."""
        return paper_policy(TEXT_SOFTMAX if "cond" in family.branches else 8)

    def calibrate(self, job: Job) -> States:
        """The first n samples of every floor(S / m)-th of S sampler steps, all branches."""
        usual_steps, usual_samples = CALIBRATION[job.profile]
        total = job.sampler.num_inference_steps
        m = min(usual_steps, total) if self.steps is None else self.steps
        kept = torch.tensor(calibration_steps(total, m))
        n = usual_samples if self.samples is None else self.samples
        states, _ = record(job.original, _seeds(n), job.sampler)
        return states[torch.isin(states.step, kept)]

    def reshape(self, job: Job) -> None:
        """Mark every layer that reads a concatenation as it is: the up blocks' shortcuts."""
        if self.split:
            split_shortcuts(job)

    def ranges(self, job: Job, sites: Sequence[str]) -> None:
        """Weights per output channel; activations on random rows, weights quantized."""
        generator = torch.Generator().manual_seed(job.seed)
        rows = torch.randperm(len(job.calibration), generator=generator)
        batch, kind = (RUNNING_ROWS, Running) if self.running else (RANGE_ROWS, First)
        rows = rows if self.running else rows[:batch]
        rule, of_weight = ("shrink", shrink_search) if self.search else ("min_max", min_max)

        def observer(site: str, fmt: Format) -> First:
            return kind(rule, fmt, name=site)

        states = job.calibration[rows]
        quantizer = partial(of_weight, axis=0)
        set_ranges(job, sites, quantizer, observer, states, batch, self.chained)

    def fit(self, job: Job) -> list[Phase]:
        """Rounding on the weight-quantized network, then activation ranges, then their steps."""
        if not self.reconstruct:
            return [SetRanges("weight"), SetRanges("activation")]
        return [
            SetRanges("weight"),
            Reconstruct("rounding", job.teacher, ROUNDING[job.profile]),
            SetRanges("activation"),
            Reconstruct("step sizes", job.teacher, STEPS[job.profile]),
        ]


def _seeds(samples: int) -> Sequence[int]:
    if not 1 <= samples <= len(seeds.CALIBRATION):
        raise InvalidInputError(
            f"samples={samples}; choose 1 to {len(seeds.CALIBRATION)} calibration trajectories."
        )
    return seeds.CALIBRATION[:samples]


METHOD = QDiffusion
