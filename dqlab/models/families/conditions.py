"""What the picture of each seed is to show, for the pipelines that want to be told."""

from collections.abc import Sequence
from typing import Any

import torch

from dqlab.models.captions import attributes_of, caption_number
from dqlab.models.families.asked import asked_of_seeds
from dqlab.models.motion import MOTIONS, motion_captions, motions_of

SMALL = 8
"""Latents of at most this size belong to models of the size dqlab ships."""
IMAGENET_CLASSES = 1000


def small(pipe) -> bool:
    """Whether a latent pipeline is of the size dqlab ships, and knows its captions and classes."""
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    size = network.config.sample_size
    return isinstance(size, int) and size <= SMALL


def captions_of_seeds(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """A text-to-image pipeline draws each seed's own caption, or the prompt a user asked for."""
    return _prompts(pipe, seeds, attributes_of(seeds).captions())


def motion_captions_of_seeds(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """A text-to-video pipeline is also told each seed's own motion, if its words are known."""
    shown = attributes_of(seeds)
    words = set(pipe.tokenizer.get_vocab())
    if not {piece for phrase in MOTIONS for piece in pipe.tokenizer.tokenize(phrase)} <= words:
        return captions_of_seeds(pipe, seeds)
    return _prompts(pipe, seeds, motion_captions(shown, motions_of(seeds)))


def _prompts(pipe, seeds: Sequence[int], drawn: list[str]) -> dict[str, Any]:
    """What the user asked for, else what was drawn."""
    prompt = asked_of_seeds(pipe, seeds).get("prompt") or drawn
    return {"prompt": [prompt] * len(seeds) if isinstance(prompt, str) else prompt}


def caption_classes(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """A small class-conditional model has one class for every caption."""
    return {"class_labels": caption_number(attributes_of(seeds)).tolist()}


def garments_of_seeds(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """A model conditioned on garments alone draws each seed's own."""
    return {"class_labels": attributes_of(seeds).garment.tolist()}


def imagenet_classes(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """A class drawn from each seed."""
    return {"class_labels": [_drawn(seed, IMAGENET_CLASSES) for seed in seeds]}


def pictures_of_seeds(seeds: Sequence[int]) -> list[Any]:
    """Held-out tinted garments, one per seed, as PIL images."""
    from diffusers.image_processor import VaeImageProcessor

    from dqlab.models.fashion import load_held_out
    from dqlab.models.tint import tint

    grey, _ = load_held_out()
    shown = attributes_of(seeds)
    images = tint(
        grey[[_drawn(seed, len(grey)) for seed in seeds]], shown.colour, shown.background
    )
    pixels = (images / 2 + 0.5).clamp(0, 1).movedim(1, -1).numpy()
    return VaeImageProcessor.numpy_to_pil(pixels)


def _drawn(seed: int, below: int) -> int:
    generator = torch.Generator().manual_seed(int(seed))
    return int(torch.randint(below, (), generator=generator))
