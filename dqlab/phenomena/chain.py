"""How a trajectory becomes a picture: what each step implies, and when it is decided."""

import pandas as pd
import torch
from torch import Tensor

from dqlab.models.classifier import HEADS, AttributeClassifier, load_classifier
from dqlab.phenomena.schedule import implied_image
from dqlab.trajectory import States


def implied_error(states: States, images: Tensor, scheduler) -> pd.DataFrame:
    """Columns step, timestep, seed, error: MSE of the implied picture to the final one.

    Args:
        states: full-precision trajectories.
        images: their results `[N, 3, H, W]` in [0, 1], in the order of the states' seeds.
        scheduler: the pipeline's.

    """
    final = images[_rows_of(states)]
    implied = implied_image(states, scheduler) / 2 + 0.5
    return pd.DataFrame(
        {
            "step": states.step.numpy(),
            "timestep": states.t.numpy(),
            "seed": states.seed.numpy(),
            "error": (implied - final).square().flatten(1).mean(1).numpy(),
        }
    )


def mean_error(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean of `implied_error` over seeds: step, timestep, error; exact answers are left out."""
    means = frame.groupby(["step", "timestep"], as_index=False)["error"].mean()
    return means[means["error"] > 0]


def _rows_of(states: States) -> Tensor:
    """Which image belongs to each row: seeds in order of first appearance."""
    order = {seed: i for i, seed in enumerate(dict.fromkeys(states.seed.tolist()))}
    return torch.tensor([order[s] for s in states.seed.tolist()])


def settle_steps(
    states: States, scheduler, classifier: AttributeClassifier | None = None
) -> pd.DataFrame:
    """Columns seed, attribute, step: first step from which the label no longer changes.

    Labels are read off the implied picture of each step; the last step's label is the final one.
    """
    read, _ = (classifier or load_classifier()).read(implied_image(states, scheduler))
    rows = []
    for seed in dict.fromkeys(states.seed.tolist()):
        mine = states.seed == seed
        for head in HEADS:
            labels = getattr(read, head)[mine]
            differs = (labels != labels[-1]).nonzero()
            rows.append((seed, head, int(differs.max()) + 1 if len(differs) else 0))
    return pd.DataFrame(rows, columns=["seed", "attribute", "step"])
