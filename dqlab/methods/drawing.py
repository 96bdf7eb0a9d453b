"""Calibration sets with a number of samples per step, for methods that choose the steps."""

from collections.abc import Sequence

import torch

from dqlab import seeds
from dqlab.errors import InvalidInputError
from dqlab.methods.job import Job
from dqlab.trajectory import States, concatenate, record


def draw(job: Job, states: States, n: Sequence[int]) -> States:
    """n_i rows of step i, shuffled by the job's seed.

    Args:
        job: the quantization in progress.
        states: of the first calibration trajectories; more are recorded where one step should
            give more samples than there are.
        n: samples of each step.

    """
    if more := seeds.CALIBRATION[len(states.seed.unique()) : max(n)]:
        states = concatenate([states, record(job.original, more, job.sampler)[0]])
    return pick(states, n, torch.Generator().manual_seed(job.seed))


def pick(states: States, n: Sequence[int], generator: torch.Generator) -> States:
    """n_i rows of step i, shuffled; trajectories take turns in random order.

    With at least as many trajectories as samples none is used twice. All guidance branches of a
    chosen state are kept.

    Raises:
        InvalidInputError: if a step should give more samples than there are trajectories.

    """
    names = states.seed.unique()
    if max(n) > len(names):
        raise InvalidInputError(
            f"Step {n.index(max(n))} should give {max(n)} samples, but only {len(names)} "
            "trajectories were recorded. Ask for fewer samples."
        )
    steps = torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n))
    turns = names[torch.randperm(len(names), generator=generator)]
    turns = turns[torch.arange(len(steps)) % len(names)]
    chosen = [
        ((states.step == step) & (states.seed == seed)).nonzero().flatten()
        for step, seed in zip(steps.tolist(), turns.tolist(), strict=True)
    ]
    order = torch.randperm(len(chosen), generator=generator).tolist()
    return states[torch.cat([chosen[i] for i in order])]
