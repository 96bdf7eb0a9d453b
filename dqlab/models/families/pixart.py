"""PixArt-alpha and PixArt-sigma: transformers that read text through cross-attention."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dqlab.models.families.conditions import captions_of_seeds, small
from dqlab.models.families.family import Family


def _conditions(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """Captions as they are, at the size the network was trained for."""
    plain = {"use_resolution_binning": False, "clean_caption": False}
    return captions_of_seeds(pipe, seeds) | plain


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
