"""DDPM and DDIM: a U-Net on pixels, without conditions."""

from dqlab.models.families.family import Family

PIXEL_UNET = Family(
    "pixel U-Net",
    pipelines=("DDIMPipeline",),
    component="unet",
    first="conv_in",
    last="conv_out",
)
DDPM_UNET = Family(
    "pixel U-Net (ancestral)",
    pipelines=("DDPMPipeline",),
    component="unet",
    first="conv_in",
    last="conv_out",
    has_eta=False,
)
