"""PixArt-alpha and PixArt-sigma: transformers that read text through cross-attention."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dqlab.models.captions import MAX_LENGTH
from dqlab.models.families.conditions import captions_of_seeds, small
from dqlab.models.families.family import Family


def _conditions(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """Captions as they are, at the size the network was trained for."""
    return captions_of_seeds(pipe, seeds) | {
        "use_resolution_binning": False,
        "clean_caption": False,
        **_few_words(pipe),
    }


def _few_words(pipe) -> dict[str, int]:
    """Published models were trained on 120 or 300 tokens, which is their pipeline's default."""
    return {"max_sequence_length": MAX_LENGTH} if small(pipe) else {}


TEXT_DIT = Family(
    "text DiT",
    pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
    component="transformer",
    first="pos_embed.proj",
    last="proj_out",
    branches=("uncond", "cond"),
    guidance_scale=2.0,
    conditions=_conditions,
    learned_sigma=True,
    fits=small,
)
PIXART = replace(TEXT_DIT, name="PixArt", guidance_scale=4.5, fits=lambda pipe: not small(pipe))
