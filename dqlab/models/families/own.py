"""Pipelines that diffusers does not have: super-resolution, and binary codes."""

from dqlab.models.families.conditions import garments_of_seeds
from dqlab.models.families.family import Family
from dqlab.models.upscaling import low_pictures_of_seeds

SR_UNET = Family(
    "super-resolution U-Net",
    pipelines=("SuperResolutionPipeline",),
    component="unet",
    first="conv_in",
    last="conv_out",
    conditions=low_pictures_of_seeds,
)
BINARY_LATENT = Family(
    "binary latent transformer",
    pipelines=("BinaryLatentPipeline",),
    component="transformer",
    first="bits_in",
    last="bits_out",
    has_eta=False,
    guidance_scale=2.0,
    branches=("uncond", "cond"),
    conditions=garments_of_seeds,
)
