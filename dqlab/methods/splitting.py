"""The rewrite that splits shortcuts, for any method's `reshape`."""

import warnings

from dqlab.layers import concatenations, split_layer
from dqlab.methods.job import Job


def split_shortcuts(job: Job) -> None:
    """Mark every layer that reads a channel concatenation as it is: the up blocks' shortcuts.

    Warns where a model has none.
    """
    example = job.calibration[:1]
    found = concatenations(job.denoiser, lambda: example.call(job.denoiser))
    if not found:
        warnings.warn(
            f"No layer of this {job.family.name} reads a channel concatenation, so there is "
            "nothing to split.",
            stacklevel=2,
        )
    for path, sizes in found.items():
        split_layer(job.denoiser.get_submodule(path), sizes, path)
