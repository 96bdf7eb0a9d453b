"""SD3 and Flux: transformers that predict the velocity of a rectified flow.

Their samplers step along sigmas and have no eta. What the network predicts is no noise, so the
SQNR is that of its output, the velocity.
"""

import copy

import numpy as np
from torch import Tensor

from dqlab.models.families.asked import asked
from dqlab.models.families.conditions import captions_of_seeds
from dqlab.models.families.family import Family

PACKED = 2
"""Flux packs its latents two by two before the network sees them."""


def _tokens(pipe, patch: int) -> int:
    """How many tokens a picture is, at the size asked for or the network's own."""
    sizes = (asked(pipe).get(side) for side in ("height", "width"))
    latents = [
        pipe.default_sample_size if size is None else size // pipe.vae_scale_factor
        for size in sizes
    ]
    return (latents[0] // patch) * (latents[1] // patch)


def _shift(pipe, tokens: int) -> float:
    """How far the schedule is shifted for pictures of so many tokens."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = pipe.scheduler.config
    return calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )


def _sd3_timesteps(pipe, num_inference_steps: int) -> Tensor:
    scheduler, shift = copy.deepcopy(pipe.scheduler), {}
    if scheduler.config.get("use_dynamic_shifting"):
        shift["mu"] = _shift(pipe, _tokens(pipe, pipe.transformer.config.patch_size))
    scheduler.set_timesteps(num_inference_steps, **shift)
    return scheduler.timesteps


def _flux_timesteps(pipe, num_inference_steps: int) -> Tensor:
    """Flux is told t / 1000, computed in the precision of its latents."""
    scheduler = copy.deepcopy(pipe.scheduler)
    sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    given = {} if scheduler.config.get("use_flow_sigmas") else {"sigmas": sigmas}
    steps = None if given else num_inference_steps
    mu = _shift(pipe, _tokens(pipe, PACKED))
    scheduler.set_timesteps(steps, mu=mu, **given)
    return scheduler.timesteps.to(pipe.transformer.dtype) / 1000


SD3 = Family(
    "SD3",
    pipelines=("StableDiffusion3Pipeline",),
    component="transformer",
    first="pos_embed.proj",
    last="proj_out",
    has_eta=False,
    branches=("uncond", "cond"),
    guidance_scale=7.0,
    conditions=captions_of_seeds,
    timesteps=_sd3_timesteps,
)
FLUX = Family(
    "Flux",
    pipelines=("FluxPipeline",),
    component="transformer",
    first="x_embedder",
    last="proj_out",
    has_eta=False,
    guidance_scale=3.5,
    embedded_guidance=True,
    conditions=captions_of_seeds,
    timesteps=_flux_timesteps,
)
