"""Searched ranges around zero on an unsigned grid, as PTQ4DM, EDA-DM and QDrop set them."""

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from dqlab.errors import UnknownNameError
from dqlab.formats import Affine, Format, Range
from dqlab.methods.job import Job
from dqlab.methods.method import set_ranges
from dqlab.ranges import Ema
from dqlab.ranges.kl import divergence_from
from dqlab.ranges.rows import rows_of
from dqlab.ranges.rules import Rule
from dqlab.ranges.search import LossOf, cosine_loss, gridded, power_loss

METRICS: dict[str, LossOf] = {
    "mse": power_loss(2.4),
    "l1": power_loss(1.0),
    "cosine": cosine_loss,
    "kl": divergence_from,
}
"""What the best of 100 widths of a range makes small; "mse" is the papers' word for L_2.4."""


def centred(formats: Mapping[str, Format | None]) -> dict[str, Format | None]:
    """The same formats, asymmetric affine ones with the range [-tau, tau]."""
    return {
        site: Affine(fmt.bits, "sym_offset") if _movable(fmt) else fmt
        for site, fmt in formats.items()
    }


def _movable(fmt: Format | None) -> bool:
    return isinstance(fmt, Affine) and fmt.variant == "asymmetric"


def set_searched_ranges(
    job: Job, sites: Sequence[str], metric: str = "mse", chained: bool = False
) -> None:
    """Weights per output channel by search; activations by search in each batch, averaged.

    The average moves, r <- 0.9 r + 0.1 r_batch, and starts with the first batch.

    Args:
        job: the quantization in progress.
        sites: whose ranges to set.
        metric: a key of `METRICS`.
        chained: as `dqlab.methods.method.observe`.

    Raises:
        UnknownNameError: as `width_rule`.

    """
    rule = width_rule(metric)

    def observer(site: str, fmt: Format) -> Ema:
        return Ema(rule, fmt, name=site)

    def of_weight(weight: Tensor, fmt: Format) -> Range:
        rows = rows_of(weight, 0)
        return rows.range(fmt, *rule(rows.values, fmt))

    set_ranges(job, sites, of_weight, observer, chained=chained)


def width_rule(metric: str) -> Rule:
    """The rule that tries 100 widths and keeps the one that is best by a metric.

    The wider of two equal ones: histograms of a few hundred weights hold one value a bin, and then
    no width at all changes their divergence.

    Raises:
        UnknownNameError: if there is no such metric.

    """
    if metric not in METRICS:
        raise UnknownNameError(f"No range metric {metric!r}; there are {', '.join(METRICS)}.")
    return partial(gridded, loss_of=METRICS[metric], two=False, widest_first=True)
