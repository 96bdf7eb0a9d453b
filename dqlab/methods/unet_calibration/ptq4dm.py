"""PTQ4DM: Post-training Quantization on Diffusion Models (Shang et al., CVPR 2023, 2211.15736).

Claim: one network serves all time steps and its activations change with them, so ranges must be
set on states of many steps, more of them towards the picture. Normally distributed time-step
calibration (section 3.3) draws for each sample

    t_i ~ N(mu, sigma^2),  mu <= T / 2,  clamped to [0, T - 1],  0 the cleanest step,

samples from fresh noise down to t_i in full precision, and keeps the network's input x_{t_i} with
the time the network is told there. Ranges then have the least L_2.4 error; nothing is learned.

The published code pairs t_i with the state of step T - 1 - t_i, keeps the step's output, and
passes respaced indices as times; this follows the paper. The code also quantizes layers' outputs;
here, as everywhere, it is their inputs. With fewer trajectories than samples a trajectory gives
several, never the same state twice.
"""

from collections.abc import Sequence

import torch

from dqlab import seeds
from dqlab.formats import Format
from dqlab.methods import paper_sites
from dqlab.methods.centred import centred, set_searched_ranges
from dqlab.methods.drawing import draw
from dqlab.methods.job import Job
from dqlab.methods.method import Method, Paper
from dqlab.reference.ptq4dm import time_steps
from dqlab.trajectory import States, record

CALIBRATION = {"teach": (32, 160), "paper": (512, 1024)}
"""Trajectories to draw from, samples N."""


class Ptq4dm(Method):
    """Calibration at normally distributed time steps.

    Args:
        samples: N; None for the profile's.
        mu, sigma: mean and standard deviation of t in units of T, 0 at the picture; the
            defaults are the published script's.
        metric: what ranges make small: "mse" (L_2.4, the paper's choice), "l1", "cosine", "kl".
        symmetric: ranges [-tau, tau] as in the published code; asymmetric otherwise.
        chained: set a layer's range with the layers before it quantized already, as the
            published code does; default: each on exact inputs.

    """

    slug = "ptq4dm"
    paper = Paper("Post-training Quantization on Diffusion Models", "CVPR 2023", "2211.15736")
    category = "1.1"
    policy = staticmethod(paper_sites.ptq4dm)

    def __init__(
        self,
        samples: int | None = None,
        mu: float = 0.4,
        sigma: float = 0.4,
        metric: str = "mse",
        symmetric: bool = True,
        chained: bool = False,
    ):
        self.samples, self.mu, self.sigma = samples, mu, sigma
        self.metric, self.symmetric, self.chained = metric, symmetric, chained

    def calibrate(self, job: Job) -> States:
        """N states at normally distributed steps."""
        trajectories, _ = CALIBRATION[job.profile]
        states, _ = record(job.original, seeds.CALIBRATION[:trajectories], job.sampler)
        return draw(job, states, self.counts(job, states))

    def counts(self, job: Job, states: States) -> list[int]:
        """Samples of each step of `states`, whose step 0 is t = T - 1."""
        T = int(states.step.max()) + 1
        samples = CALIBRATION[job.profile][1] if self.samples is None else self.samples
        generator = torch.Generator().manual_seed(job.seed)
        t = time_steps(samples, T, self.mu, self.sigma, generator)
        return (T - 1 - t).bincount(minlength=T).tolist()

    def formats(self, job: Job) -> dict[str, Format | None]:
        """The policy's, with the zero point in the middle of the codes."""
        found = super().formats(job)
        return centred(found) if self.symmetric else found

    def ranges(self, job: Job, sites: Sequence[str]) -> None:
        """Least error by the metric; activations as a moving average over batches."""
        set_searched_ranges(job, sites, self.metric, self.chained)


METHOD = Ptq4dm
