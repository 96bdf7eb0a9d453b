"""What a diffusion schedule does to a picture, before any network is asked.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise
    x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)

(Ho et al., NeurIPS 2020, arXiv 2006.11239, equations 4 and 15). Of a picture with unit power,
abar_t is the share of x_t's power that is still signal; 1 - abar_t is noise.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.trajectory import States


def shares(scheduler) -> pd.DataFrame:
    """Columns t, signal, noise: power shares of x_t on the training schedule."""
    signal = scheduler.alphas_cumprod.double().numpy()
    return pd.DataFrame({"t": range(len(signal)), "signal": signal, "noise": 1 - signal})


def equal_shares(scheduler) -> int:
    """First timestep at which no more than half of the power is signal.

    Raises:
        InvalidInputError: if the schedule never gets there.

    """
    below = shares(scheduler).query("signal <= 0.5")
    if below.empty:
        raise InvalidInputError("This schedule keeps more than half of the signal at every t.")
    return int(below["t"].iloc[0])


def magnification(scheduler, t: int) -> float:
    """How many times an error of the predicted noise shows up in the implied picture at t."""
    signal = float(scheduler.alphas_cumprod[t])
    return ((1 - signal) / signal) ** 0.5


def noised(image: Tensor, timesteps: Sequence[int], scheduler, seed: int = 0) -> Tensor:
    """One picture `[C, H, W]` in [-1, 1] at several timesteps, `[len(timesteps), C, H, W]`.

    The same noise is used for all, so that only its amount differs.
    """
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    t = torch.as_tensor(list(timesteps))
    many = image.expand(len(t), *image.shape)
    return scheduler.add_noise(many, noise.expand_as(many), t)


def implied_image(states: States, scheduler) -> Tensor:
    """The finished picture each noise prediction implies, clipped to [-1, 1], `[R, C, H, W]`."""
    signal = scheduler.alphas_cumprod.to(states.x)[states.t.long()]
    signal = signal.reshape(-1, *[1] * (states.x.ndim - 1))
    return ((states.x - (1 - signal).sqrt() * states.output) / signal.sqrt()).clamp(-1, 1)
