"""Paper 28: a method that lives outside dqlab. It takes the mean error out of every prediction.

e = eps_q - mean(eps_q - eps), one number per sampling step.
"""

import torch

from dqlab import seeds
from dqlab.methods import Correction, Method, Paper, Step
from dqlab.trajectory import record, replay


class MeanCorrection(Correction):
    """Table: mu `[T]`."""

    kind = "mean-only"

    def eps(self, eps: torch.Tensor, step: Step) -> torch.Tensor:
        """Without the mean error of this step."""
        return eps - self.at("mu", step)


class MeanOnly(Method):
    """Acts while sampling, behind any quantized network."""

    slug = "mean-only"
    paper = Paper("Paper 28", "nowhere", "0000.00000")
    category = "1.5"

    def correct(self, job) -> MeanCorrection:
        """Measured on eight full-precision trajectories."""
        states, _ = record(job.original, seeds.CALIBRATION[:8], job.sampler)
        eps, rows = states.guided(states.output)
        error = states.guided(replay(job.denoiser, states))[0] - eps
        step = states.step[rows]
        mu = [error[step == k].mean() for k in range(len(job.context.schedule))]
        return MeanCorrection({"mu": torch.stack(mu)})
