"""What the picture of each seed is to show, for the pipelines that want to be told."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dqlab.models.captions import attributes_of, caption_number

SMALL = 8
"""Latents of at most this size belong to models of the size dqlab ships."""
IMAGENET_CLASSES = 1000


def small(pipe) -> bool:
    """Whether a latent pipeline is of the size dqlab ships, and knows its captions and classes."""
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    size = network.config.sample_size
    return isinstance(size, int) and size <= SMALL


def captions_of_seeds(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """A text-to-image pipeline draws each seed's own caption."""
    return {"prompt": attributes_of(seeds).captions()}


def caption_classes(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """A small class-conditional model has one class for every caption."""
    return {"class_labels": caption_number(attributes_of(seeds)).tolist()}


def imagenet_classes(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """A class drawn from each seed."""
    return {"class_labels": [_drawn(seed, IMAGENET_CLASSES) for seed in seeds]}


def pictures_of_seeds(seeds: Sequence[int], height: int, width: int) -> Tensor:
    """Held-out tinted garments, one per seed, float32 `[N, 3, height, width]` in [0, 1]."""
    from dqlab.models.fashion import load_held_out
    from dqlab.models.tint import tint

    grey, _ = load_held_out()
    shown = attributes_of(seeds)
    chosen = grey[[_drawn(seed, len(grey)) for seed in seeds]]
    images = tint(chosen, shown.colour, shown.background) / 2 + 0.5
    return torch.nn.functional.interpolate(images, (height, width), mode="bilinear").clamp(0, 1)


def _drawn(seed: int, below: int) -> int:
    generator = torch.Generator().manual_seed(int(seed))
    return int(torch.randint(below, (), generator=generator))
