"""DiT: class-conditional transformers.

The conditional branch comes first, both branches go through the scheduler, and half of the output
is a learned variance. The pipeline gives its scheduler neither eta nor a generator.
"""

from dataclasses import replace

from dqlab.models.families.conditions import caption_classes, imagenet_classes, small
from dqlab.models.families.family import Family

LATENT_DIT = Family(
    "latent DiT",
    pipelines=("DiTPipeline",),
    component="transformer",
    first="pos_embed.proj",
    last="proj_out_2",
    has_eta=False,
    branches=("cond", "uncond"),
    guidance_scale=2.0,
    conditions=caption_classes,
    learned_sigma=True,
    fits=small,
)
DIT = replace(
    LATENT_DIT,
    name="DiT",
    guidance_scale=4.0,
    conditions=imagenet_classes,
    fits=lambda pipe: not small(pipe),
)
