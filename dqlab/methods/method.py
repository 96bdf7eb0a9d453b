"""What a method is: five moments, each with plain round-to-nearest behaviour until overridden.

calibrate   which (x_t, t, condition) stand for the whole trajectory?
reshape     which rewrite of the model makes the tensors easier?
place       which format and range at which site and step?   (`formats`, `ranges`)
fit         which parameters are learned, against which loss?
correct     what is repaired while sampling?
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from torch import Tensor

from dqlab import seeds
from dqlab.errors import InvalidInputError
from dqlab.formats import Format, Range
from dqlab.layers import Policy, quantizers
from dqlab.methods.job import Job
from dqlab.models.families import Family, Sampler
from dqlab.ranges import MinMax, Observer, min_max
from dqlab.trajectory import States, inactive, record, replay, tapped
from dqlab.trajectory.probe import BATCH

MOMENTS: dict[str, tuple[str, ...]] = {
    "calibrate": ("calibrate",),
    "reshape": ("reshape",),
    "place": ("formats", "ranges"),
    "fit": ("fit",),
    "correct": ("correct",),
}
CALIBRATION_TRAJECTORIES = 32


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    venue: str
    arxiv: str


class Phase(Protocol):
    """One entry of a method's fit: it changes the job's denoiser and nothing else."""

    name: str

    def run(self, job: Job) -> None:
        """Do it."""


@dataclass(frozen=True)
class SetRanges:
    """Ask the recipe's `ranges` for every site of one kind ("weight" or "activation")."""

    kind: str

    @property
    def name(self) -> str:
        """For progress and records."""
        return f"{self.kind} ranges"

    def run(self, job: Job) -> None:
        """Set them."""
        job.recipe.ranges(job, job.sites(self.kind))


def ranges_alone() -> list[Phase]:
    """The fit that learns nothing: weight ranges, then activation ranges."""
    return [SetRanges("weight"), SetRanges("activation")]


class Method:
    """Base of all methods. Subclasses override only the moments their paper is about."""

    slug: ClassVar[str]
    paper: ClassVar[Paper]
    category: ClassVar[str]
    kind: ClassVar[str] = "quantizer"
    bits: ClassVar[dict[str, Sequence[int]]] = {
        "weights": range(2, 9),
        "activations": range(2, 9),
    }
    """Integer bit-widths the method is defined for; format names such as "fp8" also work."""
    learns_from_data: bool = False
    """Whether it trains on clean samples, which a caller may give as `data`."""
    adds: ClassVar[tuple[str, ...]] = ()
    """Moments at which this method works on what another one did there, instead of clashing."""
    beneath: "Method | None" = None
    """That other method, once they are combined."""
    options: Mapping[str, Any] = MappingProxyType({})
    """What `recipe` was asked for and is not the default."""

    @property
    def under(self) -> "Method":
        """What a method that adds to a moment starts from: the one beneath, or plain rounding."""
        return self.beneath or Method()

    def on(self, base: "Method") -> "Method":
        """A copy at work on what `base` does, at a moment this method `adds` to."""
        made = copy.copy(self)
        made.beneath = base
        return made

    def unfit(self, family: Family) -> str | None:
        """Why this method cannot work on a family's models, or None if it can."""
        return None

    def check_sampler(self, pipe: Any, sampler: Sampler) -> None:
        """Raise NotApplicableError if what it repairs while sampling cannot be repaired here.

        Asked before anything runs, of the method that acts at `correct`.
        """

    def policy(self, family: Family) -> Policy | None:
        """Sites and bits of the paper's own experiments, for policy="paper"; None: not stated."""
        return None

    def calibrate(self, job: Job) -> States:
        """The uniform set: every step of 32 full-precision trajectories."""
        chosen = seeds.CALIBRATION[:CALIBRATION_TRAJECTORIES]
        return record(job.original, chosen, job.sampler)[0]

    def reshape(self, job: Job) -> None:
        """Leave the model as it is."""

    def formats(self, job: Job) -> dict[str, Format | None]:
        """The number format of every site, as the job's policy says."""
        return {
            site: job.policy.format(site, job.weights, job.activations)
            for site in quantizers(job.denoiser)
        }

    def ranges(self, job: Job, sites: Sequence[str]) -> None:
        """Min-max: weights per output channel, activations per tensor over the calibration set.

        Activation ranges are read with weights already quantized and activations not.
        """
        set_ranges(job, sites, partial(min_max, axis=0), lambda site, fmt: MinMax())

    def fit(self, job: Job) -> list[Phase]:
        """Learn nothing: weight ranges, then activation ranges."""
        return ranges_alone()

    def correct(self, job: Job) -> Any:
        """Repair nothing while sampling."""
        return None

    def acts(self) -> tuple[str, ...]:
        """The moments at which it acts with the options it has; usually all of `moments`."""
        return self.moments()

    @classmethod
    def moments(cls) -> tuple[str, ...]:
        """The moments this class overrides, read off the class itself."""

        def changed(name: str) -> bool:
            return getattr(cls, name) is not getattr(Method, name)

        return tuple(m for m, names in MOMENTS.items() if any(map(changed, names)))


def set_ranges(
    job: Job,
    sites: Sequence[str],
    of_weight: Callable[[Tensor, Format], Range],
    observer: Callable[[str, Format], Observer],
    states: States | None = None,
    batch_size: int = BATCH,
    chained: bool = False,
) -> None:
    """Set the ranges of all `sites` that have a format.

    Args:
        job: the quantization in progress.
        sites: names of weight and activation sites.
        of_weight: the range of a weight (or of a split weight's part).
        observer: made for every activation site; sees its tensors on `states`.
        states: default: the whole calibration set.
        batch_size: rows an observer sees at a time.
        chained: as `observe`.

    """
    found, weights = quantizers(job.denoiser), job.weights_by_site()
    formats = {site: found[site].format for site in sites if found[site].format}
    for site in formats.keys() & weights.keys():
        found[site].set_range(of_weight(weights[site], formats[site]))
    watched = {s: observer(s, fmt) for s, fmt in formats.items() if s not in weights}
    if watched:
        observe(job, watched, states, batch_size, chained)
        for site, seen in watched.items():
            found[site].set_range(seen.range(formats[site]))


def observe(
    job: Job,
    observers: dict[str, Any],
    states: States | None = None,
    batch_size: int = BATCH,
    chained: bool = False,
) -> None:
    """Replay states; every observer sees its site's unquantized tensor.

    Activations on the way there are unquantized too, so that a site's range does not depend on
    those before it. If `chained`, each site quantizes by what it has seen so far, this batch
    included, before the next one is reached, as in the published code of BRECQ's descendants.
    """
    found = quantizers(job.denoiser)
    active = [] if chained else [found[site] for site in job.sites("activation")]

    def see(site: str, x: Tensor) -> None:
        _update(observers[site], site, x)
        if chained:
            found[site].set_range(observers[site].range(found[site].format))

    with inactive(active), tapped(job.denoiser, observers, see):
        replay(job.denoiser, job.calibration if states is None else states, batch_size)


def _update(observer, site: str, x) -> None:
    try:
        observer.update(x)
    except InvalidInputError as error:
        raise InvalidInputError(f"At {site}: {error}") from error
