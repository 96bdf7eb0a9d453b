"""Signal-to-quantization-noise ratio of the noise prediction, per sampling step.

    SQNR_k = 10 log10( sum eps^2 / sum (eps_q - eps)^2 )   dB,

sums over all trajectories and elements at step k, eps after guidance and after corrections that
act on it, both networks asked about the same full-precision states. 20 dB means that the error has
1 % of the signal's power.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError
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
    return answer_powers(states[rows], answer, truth)


def answer_powers(states: States, answer: Tensor, truth: Tensor) -> pd.DataFrame:
    """The same frame from guided predictions `[R, ...]` that are there already.

    Args:
        states: one row per prediction.
        answer: the quantized network's predictions.
        truth: the full-precision network's.

    """
    frame = pd.DataFrame(
        {
            "step": states.step.numpy(),
            "t": states.t.cpu().numpy().astype(float),
            "seed": states.seed.numpy(),
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
    low, high = _interval(_resampled([powers], draws, seed)[0].mean(0), level)
    return float(low), float(high)


def sqnr_intervals(
    powers: pd.DataFrame, draws: int = 500, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """`sqnr_per_step` with columns low and high: every step's interval over trajectories."""
    low, high = _interval(_resampled([powers], draws, seed)[0], level)
    return sqnr_per_step(powers).assign(low=low, high=high)


def bootstrap_gain_db(
    powers: pd.DataFrame,
    baseline: pd.DataFrame,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the gain in mean SQNR over a baseline on the same trajectories.

    Both are resampled together, so what is hard about a trajectory cancels.

    Raises:
        InvalidInputError: if they were not measured on the same steps and seeds.

    """
    ours, theirs = _resampled([powers, baseline], draws, seed)
    with np.errstate(invalid="ignore"):
        gain = np.where(ours == theirs, 0.0, ours - theirs)  # also where both are infinite
    low, high = _interval(gain.mean(0), level)
    return float(low), float(high)


def _resampled(frames: Sequence[pd.DataFrame], draws: int, seed: int) -> list[np.ndarray]:
    """SQNR in dB `[steps, draws]` of each frame, the same trajectories drawn for all."""
    names = [frame[["step", "seed"]].drop_duplicates() for frame in frames]
    if any(not names[0].reset_index(drop=True).equals(n.reset_index(drop=True)) for n in names):
        raise InvalidInputError(
            "These were measured on different steps or seeds, so their difference has no "
            "interval. Measure both with the same sampler and num_seeds."
        )
    generator = torch.Generator().manual_seed(seed)
    count = frames[0]["seed"].nunique()
    picks = torch.randint(count, (draws, count), generator=generator)
    return [to_db(*(x[:, picks].sum(-1) for x in _tables(frame))) for frame in frames]


def _tables(powers: pd.DataFrame) -> list[Tensor]:
    """Signal and noise `[steps, seeds]`."""
    grid = [powers.pivot(index="step", columns="seed", values=c) for c in ("signal", "noise")]
    return [torch.tensor(g.to_numpy()) for g in grid]


def _interval(drawn: np.ndarray, level: float) -> np.ndarray:
    """Low and high ends over the last axis."""
    tail = (1 - level) / 2
    # "nearest": an exact answer is infinite, and between infinities nothing can be interpolated
    return np.quantile(drawn, [tail, 1 - tail], axis=-1, method="nearest")
