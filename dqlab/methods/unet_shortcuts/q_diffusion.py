"""Q-Diffusion: Quantizing Diffusion Models (Li et al., ICCV 2023, arXiv 2302.04304).

Claim: two things break plain post-training quantization of diffusion models. Activations change
over sampling steps; and a U-Net's shortcut layers read two populations at once, the deep
features X1 and the skip features X2 of a concatenation, which one range cannot serve. So
calibrate on states spread evenly over the trajectory, and quantize both parts, and the weight's
matching input channels, before they are joined (section 4.2):

    Q_X(X) Q_W(W) = Q_X1(X1) Q_W1(W1) + Q_X2(X2) Q_W2(W2)

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
from dqlab.methods.job import Job
from dqlab.methods.method import Method, Paper, Phase, SetRanges, set_ranges
from dqlab.methods.reconstruction import Reconstruct
from dqlab.methods.splitting import split_shortcuts
from dqlab.ranges import First, min_max, shrink_search
from dqlab.reference.q_diffusion import calibration_steps
from dqlab.trajectory import States, record

CALIBRATION = {"teach": (10, 16), "paper": (20, 256)}
"""Steps m and samples per step n."""
RANGE_ROWS = 64
"""Calibration rows that activation ranges are first set on, in one forward."""


class QDiffusion(Method):
    """Split shortcuts, evenly spread calibration, reconstruction.

    Args:
        split: quantize the parts of a concatenation on their own.
        search: look for ranges by least L_2.4 error; min-max otherwise.
        reconstruct: learn rounding and step sizes; round to nearest otherwise.
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
    ):
        self.split, self.search, self.reconstruct = split, search, reconstruct
        self.steps, self.samples = steps, samples

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
        """Weights per output channel; activations on 64 random rows, weights quantized."""
        generator = torch.Generator().manual_seed(job.seed)
        rows = torch.randperm(len(job.calibration), generator=generator)[:RANGE_ROWS]
        rule, of_weight = ("shrink", shrink_search) if self.search else ("min_max", min_max)

        def observer(site: str, fmt: Format) -> First:
            return First(rule, fmt, name=site)

        states = job.calibration[rows]
        set_ranges(job, sites, partial(of_weight, axis=0), observer, states, len(states))

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
