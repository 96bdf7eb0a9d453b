"""Frechet distance between two sets of images, on the attribute classifier's features.

    d^2 = |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))

computed by torchmetrics on our 64-number feature. It is not FID (that name is for Inception
features); it compares only with other distances on the same feature net. Each model card states
it as a multiple of the distance between training and test images.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from dqlab.engine.state import write_atomically
from dqlab.errors import CheckpointError, InvalidInputError
from dqlab.models.classifier import FEATURES, AttributeClassifier, load_classifier


@torch.no_grad()
def features(images: Tensor, classifier: AttributeClassifier | None = None) -> Tensor:
    """`[N, 3, 32, 32]` in [0, 1] -> features `[N, 64]`."""
    classifier = classifier or load_classifier()
    return torch.cat([classifier.features(part * 2 - 1) for part in images.split(256)])


class _Passed(torch.nn.Module):
    """Stands in for torchmetrics' feature net: our features are computed beforehand."""

    num_features = FEATURES

    def forward(self, x: Tensor) -> Tensor:
        return x


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Frechet distance between two feature sets `[N, 64]`, `[M, 64]`.

    Raises:
        InvalidInputError: if a set is too small for a covariance of 64 features, or not finite.

    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    smallest = min(len(first), len(second))
    if smallest <= FEATURES:
        raise InvalidInputError(
            f"{smallest} images cannot give a covariance of {FEATURES} features; "
            f"use at least {2 * FEATURES}."
        )
    for name, given in (("first", first), ("second", second)):
        if not bool(given.isfinite().all()):
            raise InvalidInputError(
                f"The {name} feature set holds NaN or infinity, so it has no distance. Check the "
                "images it was computed from."
            )
    metric = FrechetInceptionDistance(feature=_Passed(), input_img_size=(FEATURES,))
    metric.update(first, real=True)
    metric.update(second, real=False)
    return float(metric.compute())


def stored_features(path: Path, maker: str, compute: Callable[[], Tensor]) -> Tensor:
    """Reference features from `path`, or computed and stored there.

    They belong to one feature net: stored with its hash `maker` (named "classifier" in the file)
    and computed anew if that changed.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    if path.is_file():
        try:
            with safe_open(path, "pt") as stored:
                if (stored.metadata() or {}).get("classifier") == maker:
                    return stored.get_tensor("features").float()
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is damaged ({error}). Restore it from the repository, or delete it to "
                "have the features computed anew."
            ) from error
    found = compute().half()
    named = {"metadata": {"classifier": maker}}
    write_atomically(path, lambda temporary: save_file({"features": found}, temporary, **named))
    return found.float()


def frechet_with_error(
    reference: Tensor, images: Tensor, parts: int = 4
) -> tuple[float, float, pd.DataFrame]:
    """Distance of feature set `images` to `reference`, and its standard error over `parts`.

    The error is the standard deviation over equal disjoint parts divided by sqrt(parts); parts
    are smaller than the whole, so their own distances (in the frame) are biased upwards.
    """
    whole = frechet_distance(reference, images)
    each = [frechet_distance(reference, chunk) for chunk in images.chunk(parts)]
    frame = pd.DataFrame({"part": range(len(each)), "distance": each})
    return whole, float(frame["distance"].std() / len(each) ** 0.5), frame
