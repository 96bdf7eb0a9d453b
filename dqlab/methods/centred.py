"""Searched ranges around zero on an unsigned grid, as PTQ4DM, EDA-DM and QDrop set them."""

from collections.abc import Mapping, Sequence
from functools import partial

from dqlab.errors import UnknownNameError
from dqlab.formats import Affine, Format
from dqlab.methods.job import Job
from dqlab.methods.method import set_ranges
from dqlab.ranges import Ema, cosine, grid_search, kl, l1

METRICS = {
    "mse": (partial(grid_search, dims=1), "grid"),
    "l1": (l1, "l1"),
    "cosine": (cosine, "cosine"),
    "kl": (kl, "kl"),
}
"""By metric: the search for a weight's range, and the rule for activations.

"mse" is the papers' word for L_2.4 over 100 widths of a range; the others are tried on 80 shrinks
of min-max.
"""


def centred(formats: Mapping[str, Format | None]) -> dict[str, Format | None]:
    """The same formats, asymmetric affine ones with the range [-tau, tau]."""
    return {
        site: Affine(fmt.bits, "sym_offset") if _movable(fmt) else fmt
        for site, fmt in formats.items()
    }


def _movable(fmt: Format | None) -> bool:
    return isinstance(fmt, Affine) and fmt.variant == "asymmetric"


def set_searched_ranges(job: Job, sites: Sequence[str], metric: str = "mse") -> None:
    """Weights per output channel by search; activations by search in each batch, averaged.

    The average moves, r <- 0.9 r + 0.1 r_batch, and starts with the first batch.

    Raises:
        UnknownNameError: if there is no such metric.

    """
    if metric not in METRICS:
        raise UnknownNameError(f"No range metric {metric!r}; there are {', '.join(METRICS)}.")
    of_weight, rule = METRICS[metric]

    def observer(site: str, fmt: Format) -> Ema:
        return Ema(rule, fmt, name=site)

    set_ranges(job, sites, partial(of_weight, axis=0), observer)
