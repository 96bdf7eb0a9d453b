"""Where along a trajectory damage enters, and how much of it is handed down.

At a step the quantized run asks eps_q(x_q), the full-precision run asks eps(x):

    eps_q(x_q) - eps(x)  =  [eps_q(x_q) - eps(x_q)]  +  [eps(x_q) - eps(x)]
       both                    fresh, on its own state     inherited

`fresh_and_inherited` reports the fresh error on the clean states, eps_q(x) - eps(x), as tables
of SQNR do, so the two parts need not add up to the whole.
"""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from dqlab.models.families import family_of
from dqlab.trajectory import States, replay


@torch.no_grad()
def walk(pipe, x: Tensor, timesteps: Sequence[int], models: Sequence[nn.Module]) -> Tensor:
    """Run some consecutive sampling steps, each with a network of its own; eta 0.

    Args:
        pipe: gives the scheduler, already set to the sampler's steps.
        x: state before the first of `timesteps`, `[N, C, H, W]`.
        timesteps: those to run.
        models: the network asked at each.

    Returns:
        The state after the last, in the model's units.

    """
    for t, model in zip(timesteps, models, strict=True):
        x = pipe.scheduler.step(model(x, t).sample, t, x, eta=0.0).prev_sample
    return x


def single_step(pipe, quantized, states: States, steps: Iterable[int]) -> dict[int, Tensor]:
    """Final pictures when only one step is quantized, by step, `[N, 3, H, W]` in [0, 1].

    Before that step the run is the recorded full-precision one, so it is not repeated.
    """
    family = family_of(pipe)
    clean, rough = family.denoiser(pipe), family.denoiser(quantized)
    times = states.t.unique_consecutive().tolist()[: int(states.step.max()) + 1]
    pipe.scheduler.set_timesteps(len(times))
    found = {}
    for step in steps:
        start = states.x[states.step == step]
        models = [rough] + [clean] * (len(times) - step - 1)
        found[step] = to_image(walk(pipe, start, times[step:], models))
    return found


def to_image(x: Tensor) -> Tensor:
    """Model units [-1, 1] to pixels in [0, 1]."""
    return (x / 2 + 0.5).clamp(0, 1)


def fresh_and_inherited(
    clean: nn.Module, rough: nn.Module, states: States, drifted: States
) -> pd.DataFrame:
    """Relative error power of the noise prediction per step and seed, in three parts.

    Args:
        clean: the full-precision network.
        rough: the quantized one.
        states: the full-precision run, with its outputs.
        drifted: the quantized run from the same seeds, with its outputs.

    Returns:
        Columns series ("fresh", "inherited", "both"), step, timestep, seed, error: power of the
        difference over power of the full-precision prediction. The first step inherits nothing
        and has no such row.

    """
    answers = {
        "fresh": replay(rough, states),
        "inherited": replay(clean, drifted),
        "both": drifted.output,
    }
    frame = pd.concat([_relative(name, eps, states) for name, eps in answers.items()])
    return frame[(frame["series"] != "inherited") | (frame["step"] > 0)].reset_index(drop=True)


def median_error(frame: pd.DataFrame) -> pd.DataFrame:
    """Median over seeds: columns series, step, timestep, error."""
    groups = frame.groupby(["series", "step", "timestep"], as_index=False, sort=False)
    return groups["error"].median()


def relative_error(model: nn.Module, states: States) -> pd.Series:
    """Error power of `model`'s answer over the power of the recorded one, one per row."""
    return _relative("fresh", replay(model, states), states)["error"]


def _relative(series: str, eps: Tensor, states: States) -> pd.DataFrame:
    power = (eps - states.output).double().square().flatten(1).sum(1)
    signal = states.output.double().square().flatten(1).sum(1)
    return pd.DataFrame(
        {
            "series": series,
            "step": states.step.numpy(),
            "timestep": states.t.numpy(),
            "seed": states.seed.numpy(),
            "error": (power / signal).numpy(),
        }
    )


def overtaking_step(frame: pd.DataFrame) -> int | None:
    """First step from which the median inherited error stays above the fresh one; None if never.

    The last step must be above, and every step between.
    """
    medians = frame.groupby(["series", "step"])["error"].median().unstack("series")
    above = (medians["inherited"] > medians["fresh"]).to_numpy()
    if not above[-1]:
        return None
    below = (~above).nonzero()[0]
    return int(medians.index[below[-1] + 1]) if len(below) else int(medians.index[0])


def chain_errors(exact: States, runs: Mapping[str, States]) -> pd.DataFrame:
    """Squared distance of each run's states to the exact ones, from the same noise.

    Args:
        exact: a full-precision trajectory set.
        runs: the same seeds and steps of other networks, by name.

    Returns:
        Columns series, step, error (median over seeds, for a mean is ruled by the few runs that
        turn into another picture); step 0, where all runs start, is left out.

    """
    rows = []
    for name, run in runs.items():
        error = (run.x - exact.x).double().square().flatten(1).mean(1)
        for step in range(1, int(exact.step.max()) + 1):
            rows.append((name, step, float(error[exact.step == step].median())))
    return pd.DataFrame(rows, columns=["series", "step", "error"])
