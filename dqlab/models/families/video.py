"""Video: AnimateDiff, Stable Video Diffusion and Latte.

Frames are an axis of the sample (AnimateDiff and Latte `[N, C, F, H, W]`, SVD `[N, F, C, H, W]`)
and are folded into the batch inside the network; conditions may have a row for every frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dqlab.models.families.asked import asked
from dqlab.models.families.conditions import (
    captions_of_seeds,
    motion_captions_of_seeds,
    pictures_of_seeds,
    small,
)
from dqlab.models.families.family import Family
from dqlab.models.families.sampler import Sampler

FRAMES = 16
"""What AnimateDiff's pipeline makes by default, if the motion modules reach that far."""
RELEASED_SVD = (576, 1024)


def _animated(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    reach = pipe.unet.config.motion_max_seq_length
    return captions_of_seeds(pipe, seeds) | {"num_frames": min(FRAMES, reach)}


def _latte(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """Embedded captions: the pipeline itself cuts the padding off a lone caption only.

    So a video would depend on whether another one is made beside it.
    """
    captions = motion_captions_of_seeds(pipe, seeds)["prompt"]
    config = pipe.transformer.config
    words, nothing = pipe.encode_prompt(captions * 2, clean_caption=False)
    size = config.sample_size * pipe.vae_scale_factor
    return {
        "prompt_embeds": words[: len(captions)],
        "negative_prompt_embeds": nothing[: len(captions)],
        "negative_prompt": None,
        "video_length": config.video_length,
        "height": size,
        "width": size,
        "clean_caption": False,
    }


def _pictured(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """Videos that begin with a held-out picture."""
    latent = pipe.unet.config.sample_size
    size = latent * pipe.vae_scale_factor
    height, width = RELEASED_SVD if latent == 96 else (size, size)
    return {"image": pictures_of_seeds(seeds), "height": height, "width": width}


@dataclass(frozen=True)
class PerFrameGuidance(Family):
    """Guidance rises along the video from 1 in the first frame to the scale asked for."""

    def mix(self, pipe, sampler: Sampler) -> Tensor:
        """One scale per frame, `[1, F, 1, 1, 1]`."""
        frames = asked(pipe).get("num_frames", pipe.unet.config.num_frames)
        first = asked(pipe).get("min_guidance_scale", 1.0)
        return torch.linspace(first, self.guidance(sampler), frames).view(1, frames, 1, 1, 1)


VIDEO_UNET = Family(
    "video U-Net",
    pipelines=("AnimateDiffPipeline",),
    component="unet",
    first="conv_in",
    last="conv_out",
    branches=("uncond", "cond"),
    guidance_scale=2.0,
    conditions=_animated,
    video=True,
    fits=small,
)
ANIMATEDIFF = replace(
    VIDEO_UNET, name="AnimateDiff", guidance_scale=7.5, fits=lambda pipe: not small(pipe)
)
SVD = PerFrameGuidance(
    "SVD",
    pipelines=("StableVideoDiffusionPipeline",),
    component="unet",
    first="conv_in",
    last="conv_out",
    has_eta=False,
    branches=("uncond", "cond"),
    guidance_scale=3.0,
    guidance_argument="max_guidance_scale",
    conditions=_pictured,
    video=True,
)
VIDEO_DIT = Family(
    "video DiT",
    pipelines=("LattePipeline",),
    component="transformer",
    first="pos_embed.proj",
    last="proj_out",
    branches=("uncond", "cond"),
    guidance_scale=4.0,  # at 2, as of the still ones, fewer clips show the garment asked for
    conditions=_latte,
    learned_sigma=True,
    video=True,
    fits=small,
)
LATTE = replace(VIDEO_DIT, name="Latte", guidance_scale=7.5, fits=lambda pipe: not small(pipe))
