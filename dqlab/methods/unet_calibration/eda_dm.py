"""EDA-DM: Enhanced Distribution Alignment (Liu et al., arXiv 2401.04585).

Claim: calibration sets with a hand-made distribution of steps do not match the samples x_T..x_1 of
the whole process, and reconstructing block outputs alone fits those while the layers inside
drift. So

- take n_i samples of step i in proportion to how many steps look like it and how much it differs
  from all (features F of the middle block, min-max normalised density D and variety V):

      n_i ~ D_i + lambda V_i

- and let every layer inside a block answer for its own output too:

      L = l(z_hat, z) + lambda_m sum over inner layers of l(y_hat, y)

with rounding and activation step sizes learned together under QDrop, without AdaRound's
regulariser. Shortcuts are split as in Q-Diffusion. Follows the authors' published code.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dqlab import seeds
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.fit import capture
from dqlab.fit.profiles import JOINT
from dqlab.formats import Format
from dqlab.layers import Policy, common_policy
from dqlab.methods.centred import centred, set_searched_ranges
from dqlab.methods.drawing import draw
from dqlab.methods.job import Job
from dqlab.methods.method import Method, Paper, Phase, SetRanges
from dqlab.methods.reconstruction import Reconstruct
from dqlab.methods.splitting import split_shortcuts
from dqlab.models.families import Family
from dqlab.reference.eda_dm import allocate, density, pairwise_mse, score, variety
from dqlab.trajectory import States, record

CALIBRATION = {"teach": (32, 16, 160), "paper": (512, 64, 1024)}
"""Trajectories to draw from, trajectories B whose features are compared, samples N.

The paper takes every sample from a trajectory of its own; here trajectories take turns, for there
are 512 calibration seeds.
"""


class EdaDm(Method):
    """Calibration by density and variety of steps; fine-grained block reconstruction.

    Args:
        samples: N; None for the profile's.
        variety: lambda, the weight of variety against density.
        radius: mean squared distance r within which steps count as alike; None takes the median
            over all pairs of steps, for the scale of features differs between models.
        probe: path of the module whose input is compared; None for the middle block's attention.
        symmetric: ranges [-tau, tau] as in the paper; asymmetric otherwise.
        layer_weight: lambda_m; None for the profile's, 0 for plain block reconstruction.
        regularizer: AdaRound's lambda, which the paper leaves out.
        rounding_lr, step_lr: Adam's learning rates of rounding and step sizes, which the scripts
            tune for every data set and width; None for the profile's.
        reconstruct: learn rounding and step sizes; round to nearest otherwise.
        chained: set a layer's range with the layers before it quantized already, as the
            published code does; default: each on exact inputs.

    """

    slug = "eda-dm"
    paper = Paper(
        "Enhanced Distribution Alignment for Post-Training Quantization of Diffusion Models",
        "arXiv 2024",
        "2401.04585",
    )
    category = "1.1"

    def __init__(
        self,
        samples: int | None = None,
        variety: float = 1.2,
        radius: float | None = None,
        probe: str | None = None,
        symmetric: bool = True,
        layer_weight: float | None = None,
        regularizer: float = 0.0,
        rounding_lr: float | None = None,
        step_lr: float | None = None,
        reconstruct: bool = True,
        chained: bool = False,
    ):
        self.samples, self.variety, self.radius, self.probe = samples, variety, radius, probe
        self.symmetric, self.reconstruct, self.chained = symmetric, reconstruct, chained
        tuned = {"layer_weight": layer_weight, "rounding_lr": rounding_lr, "step_lr": step_lr}
        self.tuned = {name: v for name, v in tuned.items() if v is not None}
        self.tuned["lam"] = regularizer

    def policy(self, family: Family) -> Policy:
        """The published code's: the common one, first and last layer and softmax at 8 bits.

        The code takes the first layer it registers for the first one, which in its U-Nets is the
        time embedding's; here it is the layer that reads the picture.
        """
        return replace(common_policy(family.first, family.last), name=self.slug)

    def calibrate(self, job: Job) -> States:
        """As many samples of each step as its density and variety earn it."""
        trajectories = CALIBRATION[job.profile][0]
        states, _ = record(job.original, seeds.CALIBRATION[:trajectories], job.sampler)
        return draw(job, states, self.counts(job, states))

    def counts(self, job: Job, states: States) -> list[int]:
        """Samples of each step of `states`, by the features of its first trajectories."""
        _, compared, samples = CALIBRATION[job.profile]
        F = self.features(job, states, compared)
        return allocate(self.scores(F), samples if self.samples is None else self.samples)

    def features(self, job: Job, states: States, compared: int) -> Tensor:
        """F `[T, B, C, ...]`: the probe's input at every step of the first B trajectories.

        Of token sequences `[B, L, C]` the channels are the last dimension. A trajectory has
        several rows where guidance branches or frames are folded into the batch.
        """
        denoiser = job.family.denoiser(job.original)
        probe = self.probe or _middle_attention(denoiser)
        some = states[states.seed < states.seed.unique()[:compared].max() + 1]
        seen = capture(denoiser, [probe], some, outputs=False)[probe]
        steps = range(int(some.step.max()) + 1)
        if len(steps) < 3:
            raise InvalidInputError(
                f"A trajectory of {len(steps)} steps has no distribution of steps; sample with at "
                "least 3."
            )
        F = torch.stack([seen.take((some.step == i).nonzero().flatten()).leaves[0] for i in steps])
        return F.movedim(-1, 2) if F.ndim == 4 else F

    def scores(self, F: Tensor) -> Tensor:
        """S `[T]` from features."""
        r = self.radius
        if r is None:
            distances = pairwise_mse(F)
            r = float(distances[~torch.eye(len(F), dtype=torch.bool)].median())
        return score(density(F, r), variety(F), self.variety)

    def reshape(self, job: Job) -> None:
        """Split shortcuts, as in Q-Diffusion."""
        split_shortcuts(job)

    def formats(self, job: Job) -> dict[str, Format | None]:
        """The policy's, with the zero point in the middle of the codes."""
        found = super().formats(job)
        return centred(found) if self.symmetric else found

    def ranges(self, job: Job, sites: Sequence[str]) -> None:
        """Least L_2.4 error over 100 ranges; activations as a moving average over batches."""
        set_searched_ranges(job, sites, chained=self.chained)

    def fit(self, job: Job) -> list[Phase]:
        """All ranges first, then rounding and activation step sizes together."""
        phases: list[Phase] = [SetRanges("weight"), SetRanges("activation")]
        if self.reconstruct:
            settings = replace(JOINT[job.profile], **self.tuned)
            phases.append(Reconstruct("fine-grained reconstruction", job.teacher, settings))
        return phases


def _middle_attention(denoiser: nn.Module) -> str:
    middle = getattr(denoiser, "mid_block", None)
    if next(iter(getattr(middle, "attentions", None) or ()), None) is None:
        raise NotApplicableError(
            f"This {type(denoiser).__name__} has no attention in a middle block to compare steps "
            "by. Name a module: recipe('eda-dm', probe='<path>')."
        )
    return "mid_block.attentions.0"


METHOD = EdaDm
