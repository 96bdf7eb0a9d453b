"""Min-max ranges of every sampling step, for any method's `ranges`."""

from collections.abc import Callable, Sequence

from torch import Tensor

from dqlab.formats import Format, Range
from dqlab.layers import quantizers
from dqlab.methods.job import Job
from dqlab.methods.method import observe
from dqlab.methods.time_path import TimePath
from dqlab.ranges import MinMax, PerStep
from dqlab.trajectory import inactive, tapped


class StepMinMax:
    """An observer of one site that keeps the lowest and highest value of every step."""

    def __init__(self, site: str, job: Job):
        self.site, self.context = site, job.context
        self.steps = PerStep(lambda: MinMax(name=site), len(job.context.schedule))

    def update(self, x: Tensor) -> None:
        """See one batch."""
        self.steps.update(x, self.context.steps_of(len(x), self.site))

    def range(self, fmt: Format) -> Range:
        """Ranges of all steps, `[T]`."""
        return self.steps.range(fmt)


def set_step_ranges(job: Job, sites: Sequence[str]) -> None:
    """A min-max range per step for activation sites, over the calibration set.

    Raises:
        InvalidInputError: if the set lacks one of the sampler's steps.

    """
    _set(job, sites, lambda seen: observe(job, seen), True)


def set_time_ranges(job: Job, sites: Sequence[str], path: TimePath, per_step: bool = True) -> None:
    """Min-max over all that ever passes sites on the time path, by step or not; no pictures."""

    def run(seen: dict[str, StepMinMax | MinMax]) -> None:
        job.context.at(job.context.schedule[path.step])
        active = [q for s, q in quantizers(job.denoiser).items() if s in seen]
        with inactive(active), tapped(job.denoiser, seen, lambda s, x: seen[s].update(x)):
            path.features(job.denoiser)

    _set(job, sites, run, per_step)


def _set(
    job: Job,
    sites: Sequence[str],
    run: Callable[[dict[str, StepMinMax | MinMax]], None],
    per_step: bool,
) -> None:
    found = quantizers(job.denoiser)
    sites = [site for site in sites if found[site].format is not None]
    seen = {s: StepMinMax(s, job) if per_step else MinMax(name=s) for s in sites}
    if seen:
        run(seen)
    for site, observer in seen.items():
        found[site].set_range(observer.range(found[site].format), per_step)
