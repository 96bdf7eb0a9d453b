"""The super-resolution task: what a low-resolution picture is, and which one a seed stands for.

A picture is shrunk by a bicubic filter with anti-aliasing and enlarged again by plain bicubic
interpolation; the network sees the enlarged one beside the noisy state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from dqlab import seeds as purposes
from dqlab.errors import InvalidInputError
from dqlab.models.tint import held_out_pictures

SCALES = (2, 4)
"""Factors between the sides of the sharp and the low-resolution picture."""


def shrink(pictures: Tensor, size: int) -> Tensor:
    """Bicubic, anti-aliased: `[N, 3, H, H]` in [-1, 1] -> `[N, 3, size, size]`."""
    low = torch.nn.functional.interpolate(pictures, size=size, mode="bicubic", antialias=True)
    return low.clamp(-1, 1)


def enlarge(low: Tensor, size: int) -> Tensor:
    """Bicubic: `[N, 3, h, h]` in [-1, 1] -> `[N, 3, size, size]`.

    Raises:
        InvalidInputError: unless `size` is h times one of `SCALES`.

    """
    height, width = low.shape[-2:]
    if height != width or size not in [scale * height for scale in SCALES]:
        sides = " or ".join(f"{size // scale}x{size // scale}" for scale in SCALES)
        raise InvalidInputError(
            f"A low-resolution picture of {height}x{width} does not fit: this model makes "
            f"{size}x{size} from {sides}. Resize it first."
        )
    return torch.nn.functional.interpolate(low, size=size, mode="bicubic").clamp(-1, 1)


def blur(pictures: Tensor, scale: Tensor) -> Tensor:
    """Each picture shrunk by its own factor and enlarged again.

    Args:
        pictures: `[N, 3, H, H]` in [-1, 1].
        scale: int64 `[N]`, index into `SCALES`.

    Returns:
        `[N, 3, H, H]`: what the network is conditioned on.

    """
    size = pictures.shape[-1]
    every = torch.stack([enlarge(shrink(pictures, size // s), size) for s in SCALES])
    return every[scale, torch.arange(len(pictures), device=pictures.device)]


@dataclass(frozen=True)
class Assignment:
    """Which held-out picture a seed restores, and by which factor; one entry per seed."""

    picture: Tensor
    scale: Tensor


def assigned(seeds: Sequence[int]) -> Assignment:
    """The assignment of each seed: seeds of different purposes never share a picture.

    Calibration, search, held-out and gallery seeds are numbered through; any other seed takes
    the picture of its own number modulo their count. Factors alternate.
    """
    fixed = (purposes.CALIBRATION, purposes.SEARCH, purposes.HELD_OUT, purposes.GALLERY)
    number = {seed: i for i, seed in enumerate(chain(*fixed))}
    picture = torch.tensor([number.get(int(s), int(s) % len(number)) for s in seeds])
    return Assignment(picture, torch.tensor(SCALES)[picture % len(SCALES)])


def sharp_pictures(seeds: Sequence[int]) -> Tensor:
    """The picture each seed is to restore, `[N, 3, 32, 32]` in [-1, 1]."""
    return held_out_pictures()[0][assigned(seeds).picture]


def low_pictures_of_seeds(pipe: Any, seeds: Sequence[int]) -> dict[str, Any]:
    """Each seed's low-resolution picture, in [0, 1], as an argument of the pipeline call."""
    size, scales = pipe.unet.config.sample_size, assigned(seeds).scale.tolist()
    pairs = zip(sharp_pictures(seeds).split(1), scales, strict=True)
    return {"image": [shrink(one, size // scale)[0] / 2 + 0.5 for one, scale in pairs]}
