"""U-Nets on latents: LDM, Stable Diffusion and SDXL.

All stack the unconditional branch first.
"""

from dataclasses import replace

from dqlab.models.families.conditions import captions_of_seeds, small
from dqlab.models.families.family import Family

LATENT_UNET = Family(
    "latent U-Net",
    pipelines=("StableDiffusionPipeline",),
    component="unet",
    first="conv_in",
    last="conv_out",
    branches=("uncond", "cond"),
    guidance_scale=2.0,
    conditions=captions_of_seeds,
    fits=small,
)
STABLE_DIFFUSION = replace(
    LATENT_UNET, name="Stable Diffusion", guidance_scale=7.5, fits=lambda pipe: not small(pipe)
)
SDXL = Family(
    "SDXL",
    pipelines=("StableDiffusionXLPipeline",),
    component="unet",
    first="conv_in",
    last="conv_out",
    branches=("uncond", "cond"),
    guidance_scale=5.0,
    conditions=captions_of_seeds,
)
LDM = Family(
    "LDM",
    pipelines=("LDMPipeline",),
    component="unet",
    first="conv_in",
    last="conv_out",
)
LDM_TEXT = Family(
    "LDM (text to image)",
    pipelines=("LDMTextToImagePipeline",),
    component="unet",
    first="conv_in",
    last="conv_out",
    branches=("uncond", "cond"),
    guidance_scale=6.0,
    conditions=captions_of_seeds,
)
