"""One adapter per pipeline family: the few facts dqlab needs beyond the diffusers interface.

Which component is the denoiser, which layers are first and last, how guidance stacks its
branches, and how to ask the pipeline for a given list of trajectories.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.models.captions import attributes_of
from dqlab.models.upscaling import low_pictures_of_seeds


@dataclass(frozen=True)
class Sampler:
    """The sampler setting that tables and corrections are fitted for.

    Attributes:
        num_inference_steps: network calls per trajectory (per guidance branch).
        eta: DDIM's eta; 0 is deterministic, 1 is DDPM-like.
        guidance_scale: classifier-free guidance; None means the family's default, 1 turns it off.

    """

    num_inference_steps: int = 20
    eta: float = 0.0
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        steps, eta, guidance = self.num_inference_steps, self.eta, self.guidance_scale
        if not (_is(steps, int) and 1 <= steps <= 1000):
            raise InvalidInputError(f"num_inference_steps={steps!r}; choose 1 to 1000.")
        if not (_is(eta, int | float) and 0 <= eta <= 1):
            raise InvalidInputError(f"eta={eta!r}; DDIM's eta lies in [0, 1].")
        if not (guidance is None or (_is(guidance, int | float) and math.isfinite(guidance))):
            raise InvalidInputError(f"guidance_scale={guidance!r}; give a number or None.")

    @classmethod
    def of(cls, given: "Sampler | dict[str, Any] | None") -> "Sampler":
        """From a Sampler, keyword arguments as a dict, or None for the defaults."""
        if given is None:
            return cls()
        if isinstance(given, cls):
            return given
        try:
            return cls(**given)
        except TypeError:
            known = ", ".join(cls.__dataclass_fields__)
            raise InvalidInputError(
                f"sampler={given!r} has unknown settings; known are {known}."
            ) from None


def no_conditions(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """An unconditional pipeline only needs to know how many pictures."""
    return {"batch_size": len(seeds)}


def captions_of_seeds(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """A text-to-image pipeline draws each seed's own caption, at the size it was trained for."""
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return {"prompt": attributes_of(seeds).captions(), "height": size, "width": size}


def garments_of_seeds(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """A pipeline conditioned on garments alone draws each seed's own."""
    return {"class_labels": attributes_of(seeds).garment.tolist()}


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True)
class Family:
    """How to drive the pipelines of one family."""

    name: str
    pipelines: tuple[str, ...]
    component: str
    first: str
    last: str
    has_eta: bool = True
    branches: tuple[str, ...] = ()
    """Guidance branches in the order the pipeline stacks them; empty for unguided pipelines."""
    guidance_scale: float = 1.0
    """Default guidance; 1 is none."""
    conditions: Callable[[Any, Sequence[int]], dict[str, Any]] = no_conditions
    """Extra arguments of the pipeline call: what the picture of each seed is to show."""

    def denoiser(self, pipe) -> nn.Module:
        """The network that predicts noise."""
        return getattr(pipe, self.component)

    def guidance(self, sampler: Sampler) -> float:
        """The guidance scale in force."""
        asked = sampler.guidance_scale
        return self.guidance_scale if asked is None else asked

    def arguments(self, pipe, sampler: Sampler, seeds: Sequence[int]) -> dict[str, Any]:
        """Keyword arguments of the pipeline call that runs one trajectory per seed."""
        device = next(self.denoiser(pipe).parameters()).device
        found: dict[str, Any] = {
            "generator": [torch.Generator(device).manual_seed(int(s)) for s in seeds],
            "num_inference_steps": sampler.num_inference_steps,
            "output_type": "np",
        }
        if self.has_eta:
            found["eta"] = sampler.eta
        if self.branches:
            found["guidance_scale"] = self.guidance(sampler)
        return found | self.conditions(pipe, seeds)

    def schedule(self, pipe, sampler: Sampler) -> Tensor:
        """The timesteps the pipeline visits under `sampler`, in its order, `[T]`."""
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(sampler.num_inference_steps)
        return scheduler.timesteps

    def run(self, pipe, sampler: Sampler, seeds: Sequence[int]) -> Tensor:
        """Sample one image per seed.

        Returns:
            float32 `[N, 3, H, W]` in [0, 1].

        """
        pipe = copy.copy(pipe)  # the caller keeps their own progress bar
        pipe.set_progress_bar_config(disable=True)
        with torch.no_grad():
            images = pipe(**self.arguments(pipe, sampler, seeds)).images
        return torch.from_numpy(images).permute(0, 3, 1, 2)


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
LATENT_UNET = Family(
    "latent U-Net",
    pipelines=("StableDiffusionPipeline",),
    component="unet",
    first="conv_in",
    last="conv_out",
    branches=("uncond", "cond"),
    guidance_scale=2.0,
    conditions=captions_of_seeds,
)
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
    branches=("uncond", "cond"),
    conditions=garments_of_seeds,
)
FAMILIES = (PIXEL_UNET, DDPM_UNET, LATENT_UNET, SR_UNET, BINARY_LATENT)


def family_of(pipe) -> Family:
    """The adapter for a pipeline.

    Raises:
        NotApplicableError: if no family knows the pipeline's class.

    """
    ancestors = {cls.__name__ for cls in type(pipe).__mro__}
    for family in FAMILIES:
        if ancestors & set(family.pipelines):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise NotApplicableError(
        f"dqlab does not know how to drive a {type(pipe).__name__}; it knows {known}. An "
        "adapter for another pipeline is one `Family` in dqlab/models/families.py."
    )
