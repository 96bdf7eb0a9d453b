"""Both networks on the same states, for corrections that are fitted to the error of predictions.

The trajectories are the full-precision model's; at every state the quantized network is asked
too. What is compared is what the sampler sees: after guidance.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from dqlab import seeds
from dqlab.errors import InvalidInputError
from dqlab.methods.corrected import check_sampler
from dqlab.methods.correction import Correction
from dqlab.methods.job import Job
from dqlab.methods.method import Method
from dqlab.models.families import Sampler
from dqlab.trajectory import record, replay

BATCH = 32
SAMPLES = {"teach": 64, "paper": len(seeds.CALIBRATION)}
"""Trajectories behind a table; papers have about 1,024, dqlab's calibration seeds are 512."""
Pairs = Iterable[tuple[int, Tensor, Tensor]]
"""(step index, eps, eps_q): guided predictions of both networks `[N, C, ...]`, in any order."""


def paired_predictions(
    job: Job, samples: int | None = None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Full-precision trajectories, batch by batch and step by step.

    Args:
        job: the quantization in progress, its network finished.
        samples: trajectories; default by profile.

    Yields:
        (step index, eps, eps_q): guided predictions of both networks `[N, C, ...]`.

    """
    chosen = seeds.CALIBRATION[: samples or SAMPLES[job.profile]]
    for start in range(0, len(chosen), BATCH):
        states = record(job.original, chosen[start : start + BATCH], job.sampler)[0]
        eps, rows = states.guided(states.output)
        eps_q, _ = states.guided(replay(job.denoiser, states))
        for index in range(len(job.context.schedule)):
            mine = states.step[rows] == index
            yield index, eps[mine], eps_q[mine]


def check_samples(samples: int | None) -> None:
    """Raise InvalidInputError unless statistics can be taken over so many trajectories."""
    if samples is not None and not 2 <= samples <= len(seeds.CALIBRATION):
        raise InvalidInputError(f"samples={samples}; choose 2 to {len(seeds.CALIBRATION)}.")


class FittedOnPairs(Method):
    """A method whose correction is a statistic of both networks' predictions, step by step.

    `samples` is the number of trajectories behind it, or None for the profile's.
    """

    samples: int | None

    @property
    @abstractmethod
    def lowers_noise(self) -> bool:
        """Whether the correction edits the sampler's own noise, with the options it has."""

    def check_sampler(self, pipe: Any, sampler: Sampler) -> None:
        """A scheduler whose steps can be told apart, and whose noise can be lowered if need be."""
        check_sampler(self.slug, pipe, sampler, noise=self.lowers_noise)

    def correct(self, job: Job) -> Correction:
        """Both networks on the same full-precision trajectories."""
        self.check_sampler(job.original, job.sampler)
        return self.fitted(paired_predictions(job, self.samples), len(job.context.schedule))

    @abstractmethod
    def fitted(self, pairs: Pairs, steps: int) -> Correction:
        """The correction that belongs to predictions of both networks on `steps` steps.

        Args:
            pairs: (step, eps, eps_q) as `paired_predictions` yields them.
            steps: of the sampler.

        """
