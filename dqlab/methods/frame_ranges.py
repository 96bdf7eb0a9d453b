"""One range per video frame, where frames are folded into the batch, for any method's `ranges`."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from dqlab.errors import NotApplicableError
from dqlab.formats import Format
from dqlab.layers import quantizers
from dqlab.methods.job import Job
from dqlab.methods.method import observe
from dqlab.ranges import Observer, PerStep
from dqlab.trajectory import inactive, replay, tapped

TEMPORAL = ("motion_modules.", "temporal_transformer_blocks.")
"""Modules that fold places into the batch and attend between frames."""


class FrameRanges:
    """An observer of one site that keeps a range for every frame."""

    def __init__(self, site: str, job: Job, frames: int, make: Callable[[], Observer]):
        self.site, self.context, self.frames = site, job.context, frames
        self.seen = PerStep(make, frames)

    def update(self, x: Tensor) -> None:
        """See one batch, `[videos x frames, ...]`."""
        self.seen.update(x, self.context.frames_of(len(x), self.frames, self.site))


def folded_sites(job: Job, sites: Sequence[str]) -> dict[str, int]:
    """Sites that meet `[videos x frames, ...]`, and the number of frames.

    Raises:
        NotApplicableError: if the network's first layer meets one row per sample: pictures.

    """
    rows: dict[str, int] = {}
    first = f"{job.family.first}.input"
    with (
        inactive(quantizers(job.denoiser)[s] for s in sites),
        tapped(job.denoiser, {*sites, first}, lambda site, x: rows.update({site: len(x)})),
    ):
        replay(job.denoiser, job.calibration[:1])
    frames = rows.get(first, 1)
    if frames == 1:
        raise NotApplicableError(
            f"Ranges of frames need [N, C, frames, H, W] samples whose frames are folded into "
            f"the batch; this {type(job.denoiser).__name__} meets {job.calibration.x.ndim}-"
            "dimensional samples one row each. Use frame_wise=False."
        )
    return {
        site: frames
        for site in sites
        if rows.get(site) == frames and not any(name in site for name in TEMPORAL)
    }


def set_frame_ranges(
    job: Job, sites: Mapping[str, int], observer: Callable[[str, Format], Observer]
) -> None:
    """A range of every frame for activation sites, over the calibration set."""
    found = quantizers(job.denoiser)
    formats = {site: found[site].format for site in sites if found[site].format is not None}
    seen = {
        site: FrameRanges(site, job, sites[site], lambda s=site, f=fmt: observer(s, f))
        for site, fmt in formats.items()
    }
    if seen:
        observe(job, seen)
    for site, one in seen.items():
        found[site].set_range(one.seen.range(formats[site]), frames=one.frames)
