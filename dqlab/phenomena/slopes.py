"""How sure a slope of the error is, and whether the error is as normal as corrections assume.

A slope is one number for all elements of a step, so it looks as if thousands of elements stood
behind it. But the elements of one picture share what that picture shows, and so their slope: what
counts is how many pictures there are.
"""

import pandas as pd
import torch
from torch import Tensor

from dqlab.methods.predictions import Pairs
from dqlab.methods.unet_correction.d2_dpm import D2Dpm
from dqlab.metrics.intervals import DRAWS
from dqlab.phenomena.budget import Predictions, moments
from dqlab.phenomena.correction_bench import Bench
from dqlab.reference import d2_dpm

POOLED, WITHIN = "over all channels", "within channels"


def slope_of(means: Tensor, pooled: bool) -> Tensor:
    """Slope k `[...]` from `budget.moments` averaged over samples, `[..., C, 5]`.

    Args:
        means: as described.
        pooled: one centre for all channels, as PTQD has it, so that channel means that differ in
            both count as a slope; or a centre for each.

    """
    if pooled:
        d, e, _, de, ee = means.mean(-2).unbind(-1)
        return (de - d * e) / (ee - e * e)
    d, e, _, de, ee = means.unbind(-1)
    return (de - d * e).mean(-1) / (ee - e * e).mean(-1)


def slopes(b: Bench, ranged: int) -> pd.DataFrame:
    """Slopes of the error over the true prediction by who is asked, mean over steps.

    Args:
        b: the quantized network and its predictions.
        ranged: how many of the fitted trajectories the activation ranges have seen.

    Returns:
        Columns centre (`POOLED` or `WITHIN`), runs, count, k, low, high (95 %, trajectories are
        resampled), spread (standard deviation of a single trajectory's own slope).

    """
    fit, held = (
        torch.stack([moments(q - e, e) for _, e, q in pairs]) for pairs in (b.fit, b.held)
    )
    groups = {"seen by ranges": fit[:, :ranged], "fitted": fit, "held out": held}
    rows = []
    for centre in (POOLED, WITHIN):
        for runs, seen in groups.items():
            numbers = _interval(seen, centre == POOLED)
            rows.append({"centre": centre, "runs": runs, "count": seen.shape[1], **numbers})
    return pd.DataFrame(rows)


def _interval(seen: Tensor, pooled: bool) -> dict[str, float]:
    """Slope of `[T, N, C, 5]`, mean over steps, its interval, and the spread over trajectories."""
    count = seen.shape[1]
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(count, (DRAWS, count), generator=generator)
    drawn = slope_of(seen[:, picks].mean(2), pooled).mean(0)
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    k = float(slope_of(seen.mean(1), pooled).mean())
    own = slope_of(seen, pooled).mean(0)
    return {"k": k, "low": low, "high": high, "spread": float(own.std())}


def shapes(pairs: Predictions) -> pd.DataFrame:
    """How the error and the quantized prediction are distributed at every step.

    Returns:
        Columns step, r (correlation of error and true prediction within channels, Pearson's),
        and of error, PTQD's residual and quantized prediction, each channel brought to mean 0 and
        variance 1: skew_error, kurtosis_error, ... (excess: a normal law has 0 of both).

    """
    rows = []
    for step, eps, eps_q in pairs:
        D, E, Eq = (x.double().transpose(0, 1).flatten(1) for x in (eps_q - eps, eps, eps_q))
        d, e = (_standard(x) for x in (D, E))
        r = (d * e).mean()
        found = {"step": step, "r": float(r)}
        for name, x in (("error", d), ("residual", _standard(d - r * e)), ("answer", Eq)):
            x = _standard(x)
            found |= {f"skew_{name}": float((x**3).mean()),
                      f"kurtosis_{name}": float((x**4).mean()) - 3}  # fmt: skip
        rows.append(found)
    return pd.DataFrame(rows)


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)


def variance_lost(fitted: Pairs, asked: Predictions, **options) -> pd.DataFrame:
    """Variance that D2-DPM's mean takes from predictions, over what its model says it takes.

    Args:
        fitted: what the law is fitted to, step by step.
        asked: what it is used on; the same predictions show whether the mathematics holds.
        options: of `D2Dpm`.

    Returns:
        Columns step, lost ((Var E - Var e) / v_c).

    """
    pairs = list(fitted)
    tables = D2Dpm(variance=False, **options).fitted(pairs, len(pairs)).tables
    rows = []
    for step, eps, eps_q in asked:
        mu_q, mu_D, slope, v_c = (tables[name][step] for name in ("mu_q", "mu_D", "b", "v_c"))
        left = eps_q - d2_dpm.conditional_mean(eps_q, mu_q, mu_D, slope)
        rows.append((step, float((eps.var() - left.var()) / v_c)))
    return pd.DataFrame(rows, columns=["step", "lost"])
