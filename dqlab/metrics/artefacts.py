"""The survey's four kinds of visible damage, as numbers on paired pictures of the same seed.

Zeng et al., "Diffusion Model Quantization: A Review" (arXiv 2505.05215), section 4, describes
them in words; the proxies are ours:

    colour shift      signed mean difference per channel, and the largest of the three
    over-exposure     share of saturated values, and the ratio of pixel variances
    structure change  1 - SSIM, and 1 - intersection over union of edge maps
    detail blurring   ratio of Laplacian energies: below 1 is blur, above 1 is speckle
"""

import pandas as pd
import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.metrics.intervals import bootstrap_median, median

SATURATED = 2 / 255
"""A value this close to 0 or 1 counts as saturated."""
EDGE = 0.25
"""Gradient magnitude (of the mean over channels, images in [0, 1]) that counts as an edge."""


def artefacts(reference: Tensor, other: Tensor) -> pd.DataFrame:
    """Measure all four on pairs `[N, 3, H, W]` in [0, 1].

    Returns:
        One row per pair: colour_shift, red, green, blue, saturation_change, variance_ratio,
        structure_change, edge_change, detail_ratio. A copy gives 0 for changes, 1 for ratios.

    Raises:
        InvalidInputError: if the shapes differ or are no images.

    """
    if reference.shape != other.shape or reference.ndim != 4 or reference.shape[1] != 3:
        raise InvalidInputError(
            f"Pairs of images [N, 3, H, W] are needed; got {tuple(reference.shape)} and "
            f"{tuple(other.shape)}."
        )
    shift = (other - reference).mean((2, 3))
    return pd.DataFrame(
        {
            "colour_shift": shift.abs().amax(1),
            **{name: shift[:, i] for i, name in enumerate(("red", "green", "blue"))},
            "saturation_change": saturated_share(other) - saturated_share(reference),
            "variance_ratio": _ratio(_variance(other), _variance(reference)),
            "structure_change": 1 - ssim(reference, other),
            "edge_change": 1 - edge_overlap(reference, other),
            "detail_ratio": _ratio(laplacian_energy(other), laplacian_energy(reference)),
        }
    ).astype(float)


MEASURES = {
    "colour_shift": ("colour shift", "largest channel", 0.0),
    "saturation_change": ("over-exposure", "saturated share", 0.0),
    "variance_ratio": ("over-exposure", "variance ratio", 1.0),
    "structure_change": ("structure change", "1 - SSIM", 0.0),
    "edge_change": ("structure change", "1 - edge overlap", 0.0),
    "detail_ratio": ("detail blurring", "Laplacian ratio", 1.0),
}
"""Column of `artefacts` -> artefact, how it is measured, value of an exact copy."""


def summarise_artefacts(pairs: pd.DataFrame) -> pd.DataFrame:
    """Median over the pairs of `artefacts`, with its 95 % interval, one row per measure.

    Returns:
        Columns measure, artefact, how, median, low, high, of_a_copy.

    """
    rows = []
    for name, described in MEASURES.items():
        values = torch.tensor(pairs[name].to_numpy())
        rows.append((name, *described, float(median(values)), *bootstrap_median(values)))
    columns = ["measure", "artefact", "how", "of_a_copy", "median", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def saturated_share(images: Tensor) -> Tensor:
    """Share of values at the ends of [0, 1], `[N]`."""
    return ((images <= SATURATED) | (images >= 1 - SATURATED)).float().mean((1, 2, 3))


def _variance(images: Tensor) -> Tensor:
    return images.flatten(1).var(1)


def _ratio(value: Tensor, base: Tensor) -> Tensor:
    return value / base.clamp(min=1e-12)


def ssim(reference: Tensor, other: Tensor) -> Tensor:
    """Structural similarity per pair, `[N]` (Wang et al. 2004), window 7 for small pictures."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    # In double: single precision loses the small differences of variances on flat grounds.
    return structural_similarity_index_measure(
        other.double(),
        reference.double(),
        data_range=1.0,
        gaussian_kernel=False,
        kernel_size=7,
        reduction="none",
    )


def edge_overlap(reference: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of the pictures' edges, `[N]`; 1 where neither has any."""
    first, second = (edges(x) for x in (reference, other))
    union = (first | second).flatten(1).sum(1)
    shared = (first & second).flatten(1).sum(1)
    return torch.where(union > 0, shared / union.clamp(min=1), torch.ones_like(union) * 1.0)


def edges(images: Tensor) -> Tensor:
    """Where the gradient of the grey picture exceeds `EDGE`, bool `[N, H, W]`."""
    grey = nn.functional.pad(images.mean(1, keepdim=True), (0, 1, 0, 1), mode="replicate")
    down, right = grey.diff(dim=2)[..., :-1], grey.diff(dim=3)[..., :-1, :]
    return (down.square() + right.square()).sqrt()[:, 0] > EDGE


def laplacian_energy(images: Tensor) -> Tensor:
    """Mean square of the discrete Laplacian, `[N]`: the energy of fine detail."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], device=images.device)
    weight = kernel.expand(3, 1, 3, 3)
    return nn.functional.conv2d(images, weight, groups=3).square().mean((1, 2, 3))
