"""Ranges by search: try candidates, keep the one of least error, per row.

Candidates
    shrink   (low, high) (1 - 0.01 k), k = 0..79: both ends together, down to 21 %
             (BRECQ, Li et al., ICLR 2021, arXiv 2102.05426, and Q-Diffusion, arXiv 2302.04304)
    grid     1-D: [-t, t] with t = i/100 max |x|, or its half on the data's side if one-sided;
             2-D: width w = i/100 (high - low) and each z: [-z w / (n-1), w - z w / (n-1)], i =
             1..100 (QDrop, Wei et al., ICLR 2022, arXiv 2203.05740)
Errors
    L_p      mean |x - xhat|^p, p = 2.4 (LAPQ, Nahshan et al., arXiv 1911.07190)
    cosine   1 - <x, xhat> / (|x| |xhat|)
    kl       see `dqlab.ranges.kl`

A tie keeps the earlier candidate: for shrink the wider, so that k = 0, min-max, is never made
worse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Format, Range
from dqlab.ranges.kl import divergence_from
from dqlab.ranges.minmax import Bounds, extremes, quantiles
from dqlab.ranges.rows import Axis, rows_of, thinned

Loss = Callable[[Range], Tensor]  # range [K, 1] -> error [K]
LossOf = Callable[[Tensor, Format], Loss]  # rows [K, M] and format -> loss

SHRINKS = 80
GRID = 100
CACHED = 2**17  # values searched at a time, so that all passes over them run in the cache
MANY = 10**6  # values above which a 2-D search at 8 bits would take minutes
SHARES = (0.999, 0.9999, 0.99999)


def shrink_search(
    x: Tensor,
    fmt: Format,
    axis: Axis = None,
    group_size: int | None = None,
    p: float = 2.4,
    name: str = "tensor",
) -> Range:
    """Best of 80 joint shrinks of min-max by mean |x - xhat|^p."""
    rows = rows_of(x, axis, group_size, name)
    return rows.range(fmt, *shrunk(rows.values, fmt, power_loss(p)))


def l1(
    x: Tensor, fmt: Format, axis: Axis = None, group_size: int | None = None, name: str = "tensor"
) -> Range:
    """Best of 80 joint shrinks of min-max by mean |x - xhat|."""
    return shrink_search(x, fmt, axis, group_size, 1.0, name)


def cosine(
    x: Tensor, fmt: Format, axis: Axis = None, group_size: int | None = None, name: str = "tensor"
) -> Range:
    """Best of 80 joint shrinks of min-max by cosine distance."""
    rows = rows_of(x, axis, group_size, name)
    return rows.range(fmt, *shrunk(rows.values, fmt, cosine_loss))


def kl(
    x: Tensor, fmt: Format, axis: Axis = None, group_size: int | None = None, name: str = "tensor"
) -> Range:
    """Best of 80 joint shrinks of min-max by Kullback-Leibler divergence of histograms."""
    rows = rows_of(x, axis, group_size, name)
    return rows.range(fmt, *shrunk(rows.values, fmt, divergence_from))


def percentile_search(
    x: Tensor, fmt: Format, axis: Axis = None, group_size: int | None = None, name: str = "tensor"
) -> Range:
    """Best of the percentile ranges with q = 0.999, 0.9999 and 0.99999 by mean squared error.

    The start of QuEST (arXiv 2402.03666) and PTQ4DiT (arXiv 2405.16005).
    """
    rows = rows_of(x, axis, group_size, name)
    return rows.range(fmt, *best_percentile(rows.values, fmt))


def grid_search(
    x: Tensor,
    fmt: Format,
    axis: Axis = None,
    group_size: int | None = None,
    p: float = 2.4,
    dims: int | None = None,
    subsample: int | None = None,
    seed: int = 0,
    name: str = "tensor",
) -> Range:
    """Best of 100 (1-D) or 100 * 2^bits (2-D) ranges by mean |x - xhat|^p.

    `dims` is 1 or 2; None means 2 for the asymmetric affine variant and 1 for all other formats.
    One-sided rows are always searched in 1-D. `subsample` searches on that many values of each row
    (random, by a generator seeded with `seed`, beside the lowest and the highest). Raises
    InvalidInputError for a 2-D search of a format without zero point, of more than 8 bits, or of
    8 bits on more than a million values.
    """
    rows = rows_of(x, axis, group_size, name)
    if dims not in (None, 1, 2):
        raise InvalidInputError(f"grid_search dims must be 1, 2 or None, got {dims!r}")
    two = dims == 2 or (dims is None and getattr(fmt, "variant", None) == "asymmetric")
    values = rows.values
    if subsample is not None:
        values = thinned(values, subsample, torch.Generator().manual_seed(seed))
    if two:
        _check_affordable(values, fmt, name)
    return rows.range(fmt, *gridded(values, fmt, power_loss(p), two))


def _check_affordable(values: Tensor, fmt: Format, name: str) -> None:
    if not (isinstance(fmt, Affine) and fmt.variant == "asymmetric"):
        raise InvalidInputError(
            f"a 2-D grid search needs an asymmetric format, got {fmt}: use dims=1"
        )
    passes = f"{GRID * 2**fmt.bits} passes over the {values.numel()} values of {name}"
    if fmt.bits > 8:
        raise InvalidInputError(f"a 2-D grid search for {fmt} takes {passes}: use dims=1")
    if fmt.bits == 8 and values.numel() > MANY:
        raise InvalidInputError(
            f"a 2-D grid search for {fmt} takes {passes}: give subsample=10000 or dims=1, "
            "or use shrink_search"
        )


def shrunk(values: Tensor, fmt: Format, loss_of: LossOf) -> Bounds:
    """Best shrink of each row, and its bounds."""
    return _in_chunks(values, lambda rows: _best(fmt, _shrinks(rows), loss_of(rows, fmt)))


def gridded(
    values: Tensor, fmt: Format, loss_of: LossOf, two: bool, widest_first: bool = False
) -> Bounds:
    """Best grid candidate of each row, 2-D for rows with both signs if `two`.

    The narrower of two equal ones, as in QDrop's code, or the wider if `widest_first`.
    """

    def search(rows: Tensor) -> Bounds:
        low, high = _best(fmt, _grid_1d(rows, widest_first), loss_of(rows, fmt))
        least, most = extremes(rows)
        both = (least < 0) & (most > 0)
        if two and both.any():
            part = rows[both]
            low[both], high[both] = _best(fmt, _grid_2d(part, fmt), loss_of(part, fmt))
        return low, high

    return _in_chunks(values, search)


def best_percentile(values: Tensor, fmt: Format) -> Bounds:
    """Best of three percentile ranges of each row by mean squared error."""
    candidates = (quantiles(values, q) for q in SHARES)
    return _best(fmt, candidates, power_loss(2.0)(values, fmt))


def _shrinks(rows: Tensor) -> Iterator[Bounds]:
    low, high = extremes(rows)
    return ((low * (1 - 0.01 * k), high * (1 - 0.01 * k)) for k in range(SHRINKS))


def _grid_1d(rows: Tensor, widest_first: bool = False) -> Iterator[Bounds]:
    low, high = extremes(rows)
    tau = torch.maximum(low.abs(), high.abs())
    down, up = -tau * (low < 0), tau * (high > 0)
    shares = range(GRID, 0, -1) if widest_first else range(1, GRID + 1)
    return ((down * (i / GRID), up * (i / GRID)) for i in shares)


def _grid_2d(rows: Tensor, fmt: Affine) -> Iterator[Bounds]:
    low, high = extremes(rows)
    steps = 2**fmt.bits - 1
    for i in range(1, GRID + 1):
        width = (high - low) * (i / GRID)
        for z in range(steps + 1):
            yield -z * width / steps, width - z * width / steps


def _best(fmt: Format, candidates: Iterator[Bounds], loss: Loss) -> Bounds:
    low, high = next(candidates)
    error = loss(fmt.params(low[:, None], high[:, None]))
    for tried_low, tried_high in candidates:
        tried = loss(fmt.params(tried_low[:, None], tried_high[:, None]))
        better = tried < error
        error = torch.where(better, tried, error)
        low, high = torch.where(better, tried_low, low), torch.where(better, tried_high, high)
    return low, high


def _in_chunks(values: Tensor, search: Callable[[Tensor], Bounds]) -> Bounds:
    # short rows count as 512 values, because histograms are longer than that
    at_once = max(1, CACHED // max(512, values.shape[1]))
    found = [search(chunk) for chunk in values.split(at_once)]
    return torch.cat([low for low, _ in found]), torch.cat([high for _, high in found])


def power_loss(p: float) -> LossOf:
    """Mean |x - xhat|^p of each row."""
    if p <= 0:
        raise InvalidInputError(f"the power p of the error must be above 0, got {p}")

    def loss_of(rows: Tensor, fmt: Format) -> Loss:
        return lambda r: fmt.fake_quant(rows, r).sub_(rows).abs_().pow_(p).mean(1)

    return loss_of


def cosine_loss(rows: Tensor, fmt: Format) -> Loss:
    """1 - cosine between each row and its quantized copy; 1 if the copy is all zero."""

    # In float64, and nothing below its rounding noise counts: a constant row is parallel to every
    # copy of itself, and chance must not choose among them.
    def loss(r: Range) -> Tensor:
        copy = fmt.fake_quant(rows, r).double()
        return (1 - torch.cosine_similarity(exact, copy, dim=1)).clamp_(min=1e-12)

    exact = rows.double()
    return loss
