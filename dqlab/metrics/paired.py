"""Paired comparison of final images: same seed, full-precision and quantized pipeline.

A few flipped decisions (another garment, another colour) rule the mean, so the median and its
interval stand beside the rate of flips, as the attribute classifier sees them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.metrics.intervals import bootstrap_median, median, wilson
from dqlab.models.classifier import HEADS, AttributeClassifier, load_classifier

LARGEST = 32
"""Side of the largest colour pictures on which the attribute classifier has a say."""
BATCH = 256


@dataclass(frozen=True)
class PairedError:
    """Mean squared error per pair (images in [0, 1]) and flips.

    Attributes:
        mse: `[N]`, one per pair.
        flips: share of pairs whose garment, colour or background reads differently.

    """

    mse: Tensor
    flips: dict[str, float]

    @property
    def median(self) -> float:
        """Median over pairs."""
        return float(median(self.mse))

    def interval(self) -> tuple[float, float]:
        """95 % interval of the median."""
        return bootstrap_median(self.mse)

    def flip_interval(self, head: str) -> tuple[float, float]:
        """95 % interval of one head's flip rate."""
        return wilson(self.flips[head], len(self.mse))


def paired_error(
    reference: Tensor, other: Tensor, classifier: AttributeClassifier | None = None
) -> PairedError:
    """Compare images pair by pair; both `[N, 3, 32, 32]` in [0, 1], or videos `[N, F, 3, 32, 32]`.

    Flips of a video are counted over its frames. There are none where the classifier has no say:
    on pictures that are not in colour or larger than those it was trained on.

    Raises:
        InvalidInputError: if there are none, or the two sets differ in shape.

    """
    if len(reference) == 0 or reference.shape != other.shape:
        raise InvalidInputError(
            f"Images of shape {tuple(reference.shape)} and {tuple(other.shape)} make no pairs; "
            "sample both pipelines with the same seeds."
        )
    mse = (reference - other).square().flatten(1).mean(1)
    if not readable(reference):
        return PairedError(mse, {})
    classifier = classifier or load_classifier()
    before, after = (_read(classifier, x.flatten(0, -4)) for x in (reference, other))
    flips = (before != after).float().mean(1).tolist()
    return PairedError(mse, dict(zip(HEADS, flips, strict=True)))


def readable(images: Tensor) -> bool:
    """Whether the attribute classifier has a say on images or videos of this shape."""
    colour = images.ndim >= 4 and images.shape[-3] == 3
    return colour and max(images.shape[-2:]) <= LARGEST


def _read(classifier: AttributeClassifier, images: Tensor) -> Tensor:
    """Each head's answer, `[heads, N]`."""
    parts = [classifier.read(part * 2 - 1)[0] for part in images.split(BATCH)]
    return torch.stack([torch.cat([getattr(p, head) for p in parts]) for head in HEADS])
