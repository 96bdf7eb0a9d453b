"""The error budget of a sampling step: a bias, a slope and a rest that add up.

With D = eps_q - eps over many samples, means taken per channel c and k over all channels:

    D         =  mean_c D         +  k (eps - mean_c eps)  +  rest
    mean D^2  =  mean (mean_c D)^2  +  k^2 Var(eps)          +  mean rest^2

    k = Cov(D, eps) / Var(eps),  both within channels
    b_c = mean_c D - k mean_c eps                            the line's height at eps = 0

The three parts are orthogonal, so the second line is exact. Centring within channels keeps a
bias that differs by channel out of the slope, although eps has channel means too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.methods.corrected import prediction_correction
from dqlab.metrics.sqnr import answer_powers
from dqlab.trajectory import States, replay

PARTS = ("bias", "slope", "rest")


@dataclass(frozen=True)
class Budget:
    """Where the mean squared error of a prediction lies; tensors of any common leading shape.

    Attributes:
        k: slope of D over eps.
        b: bias per channel `[..., C]`.
        bias, slope, rest: the three parts of mean D^2.

    """

    k: Tensor
    b: Tensor
    bias: Tensor
    slope: Tensor
    rest: Tensor

    @property
    def total(self) -> Tensor:
        """Mean D^2."""
        return self.bias + self.slope + self.rest

    def shares(self) -> Tensor:
        """The parts over their sum, `[..., 3]`, in the order of `PARTS`."""
        parts = torch.stack([self.bias, self.slope, self.rest], -1)
        return parts / parts.sum(-1, keepdim=True)


def budget(D: Tensor, eps: Tensor) -> Budget:
    """The budget of one step.

    Args:
        D: error of the prediction `[N, C, ...]`.
        eps: the true prediction, like D.

    Raises:
        InvalidInputError: if the two differ in shape or have no channels.

    """
    if D.shape != eps.shape or D.ndim < 2:
        raise InvalidInputError(
            f"The error has shape {tuple(D.shape)} and the prediction {tuple(eps.shape)}; a "
            "budget needs both as [samples, channels, ...], alike."
        )
    return budget_of(moments(D, eps).mean(0))


def moments(D: Tensor, eps: Tensor) -> Tensor:
    """Means of D, eps, D^2, D eps and eps^2 per sample and channel, `[N, C, 5]`, float64."""
    d, e = (x.double().flatten(2) if x.ndim > 2 else x.double()[..., None] for x in (D, eps))
    return torch.stack([d, e, d * d, d * e, e * e]).mean(-1).movedim(0, -1)


def budget_of(means: Tensor) -> Budget:
    """The budget that belongs to `moments` averaged over samples, `[..., C, 5]`."""
    d, e, dd, de, ee = means.unbind(-1)
    power, common = (ee - e * e).mean(-1), (de - d * e).mean(-1)
    k = torch.where(power > 0, common / power.clamp(min=1e-300), 0.0)
    slope = k * common
    rest = (dd - d * d).mean(-1) - slope
    return Budget(k, d - k[..., None] * e, (d * d).mean(-1), slope, rest.clamp(min=0))


@dataclass(frozen=True)
class Predictions:
    """Both networks' guided predictions on the same full-precision states, a row for each.

    Attributes:
        states: the states, one row for each prediction.
        eps: full-precision predictions `[R, C, ...]`.
        eps_q: the quantized network's.

    """

    states: States
    eps: Tensor
    eps_q: Tensor

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(step, eps, eps_q) step by step, as corrections are fitted to."""
        for step in range(self.steps):
            mine = self.states.step == step
            yield step, self.eps[mine], self.eps_q[mine]

    @property
    def steps(self) -> int:
        """How many sampling steps there are."""
        return int(self.states.step.max()) + 1

    def after(self, pipe) -> "Predictions":
        """The same with the correction of predictions that `pipe` owns, if any."""
        correct = prediction_correction(pipe)
        if correct is None:
            return self
        return Predictions(self.states, self.eps, correct(self.eps_q, self.states))

    def powers(self) -> pd.DataFrame:
        """Signal and error power, as `dqlab.metrics.error_powers` has them."""
        return answer_powers(self.states, self.eps_q, self.eps)


def predictions_on(states: States, quantized: nn.Module) -> Predictions:
    """Ask the quantized network about recorded states."""
    eps, rows = states.guided(states.output)
    eps_q, _ = states.guided(replay(quantized, states))
    return Predictions(states[rows], eps, eps_q)


def budgets(pairs: Predictions) -> pd.DataFrame:
    """Every step's budget.

    Returns:
        Columns step, timestep, spread (standard deviation of eps_q over that of eps, less 1),
        power (mean eps^2), k, bias, slope, rest, and mean_0, mean_1, ...: the signed mean error
        of each channel.

    """
    rows = []
    for step, eps, eps_q in pairs:
        means = moments(eps_q - eps, eps).mean(0)
        found = budget_of(means)
        t = int(pairs.states.t[pairs.states.step == step][0])
        numbers = {name: float(getattr(found, name)) for name in ("k", *PARTS)}
        signed = {f"mean_{c}": float(value) for c, value in enumerate(means[:, 0])}
        spread = float(eps_q.std() / eps.std()) - 1
        power = float(means[:, 4].mean())
        rows.append({"step": step, "timestep": t, "spread": spread, "power": power,
                     **numbers, **signed})  # fmt: skip
    return pd.DataFrame(rows)


def shares(pairs: Predictions, draws: int = 500, seed: int = 0) -> pd.DataFrame:
    """Each part's share of the error power, mean over steps, with its 95 % interval.

    Returns:
        Columns part, share, low, high; trajectories are resampled.

    """
    sums = torch.stack([moments(eps_q - eps, eps) for _, eps, eps_q in pairs])
    count = sums.shape[1]
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(count, (draws, count), generator=generator)
    drawn = budget_of(sums[:, picks].mean(2)).shares().mean(0)
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype), dim=0)
    middle = budget_of(sums.mean(1)).shares().mean(0)
    columns = {"share": middle.tolist(), "low": low.tolist(), "high": high.tolist()}
    return pd.DataFrame({"part": PARTS, **columns})


def bias_gain_db(share: float) -> float:
    """What removing a bias of this share of the error power gains: -10 log10(1 - share) dB."""
    return float(-10 * torch.tensor(1 - share, dtype=torch.float64).log10())


def synthetic_bias_gain(shares_: list[float], fitted: int = 2048) -> pd.DataFrame:
    """The same measured on a made-up error, its bias estimated on `fitted` other elements.

    Returns:
        Columns ratio (share of bias), gain (dB).

    """
    generator = torch.Generator().manual_seed(0)
    rows = []
    for share in shares_:
        noise = torch.randn(fitted + 200_000, generator=generator) * (1 - share) ** 0.5
        D = noise + share**0.5
        seen, new = D[:fitted], D[fitted:]
        left = (new - seen.mean()).square().mean()
        rows.append((share, float(10 * (new.square().mean() / left).log10())))
    return pd.DataFrame(rows, columns=["ratio", "gain"])
