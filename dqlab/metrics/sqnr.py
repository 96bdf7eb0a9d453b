"""Signal-to-quantization-noise ratio of the noise prediction, per sampling step.

    SQNR_k = 10 log10( sum eps^2 / sum (eps_q - eps)^2 )   dB,

sums over all trajectories and elements at step k, eps after guidance and after corrections that
act on it, both networks asked about the same full-precision states. 20 dB means that the error has
1 % of the signal's power.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dqlab.trajectory import States, replay


def error_powers(
    states: States,
    denoiser: nn.Module,
    batch_size: int = 32,
    correct: Callable[[Tensor, States], Tensor] | None = None,
) -> pd.DataFrame:
    """Signal and error power of the guided prediction per (step, seed).

    Args:
        states: full-precision trajectories with the full-precision answers.
        denoiser: the quantized network.
        batch_size: rows asked at once.
        correct: what the pipeline does to guided predictions on the states they belong to.

    Returns:
        A frame with columns step, t, seed, signal, noise.

    """
    answer, rows = states.guided(replay(denoiser, states, batch_size))
    if correct is not None:
        answer = correct(answer, states[rows])
    truth, _ = states.guided(states.output)
    frame = pd.DataFrame(
        {
            "step": states.step[rows].numpy(),
            "t": states.t[rows].cpu().numpy().astype(float),
            "seed": states.seed[rows].numpy(),
            "signal": _power(truth),
            "noise": _power(answer - truth),
        }
    )
    return frame.groupby(["step", "t", "seed"], as_index=False).sum()


def _power(x: Tensor):
    return x.double().square().flatten(1).sum(1).cpu().numpy()


def to_db(signal, noise):
    """10 log10(signal / noise), elementwise; an exact answer gives infinity."""
    signal, noise = (torch.as_tensor(x, dtype=torch.float64) for x in (signal, noise))
    return torch.where(noise == 0, torch.inf, 10 * (signal / noise).log10()).numpy()


def sqnr_per_step(powers: pd.DataFrame) -> pd.DataFrame:
    """Columns step, t, sqnr_db from `error_powers`' frame."""
    sums = powers.groupby(["step", "t"], as_index=False)[["signal", "noise"]].sum()
    return sums.assign(sqnr_db=to_db(sums["signal"], sums["noise"]))[["step", "t", "sqnr_db"]]


def mean_sqnr_db(powers: pd.DataFrame) -> float:
    """Mean over steps of the per-step SQNR in dB."""
    return float(sqnr_per_step(powers)["sqnr_db"].mean())


def bootstrap_mean_sqnr_db(
    powers: pd.DataFrame, draws: int = 500, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Interval of `mean_sqnr_db` over resampled trajectories (percentile bootstrap)."""
    grid = [powers.pivot(index="step", columns="seed", values=c) for c in ("signal", "noise")]
    signal, noise = (torch.tensor(g.to_numpy()) for g in grid)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(signal.shape[1], (draws, signal.shape[1]), generator=generator)
    means = to_db(signal[:, picks].sum(-1), noise[:, picks].sum(-1)).mean(0)
    tail = (1 - level) / 2
    # "nearest": an exact answer is infinite, and between infinities nothing can be interpolated
    low, high = np.quantile(means, [tail, 1 - tail], method="nearest").tolist()
    return low, high
