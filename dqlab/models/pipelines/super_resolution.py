"""Super-resolution by diffusion: noise becomes the detail that a bicubic enlargement lacks.

SR3 (Saharia et al., "Image Super-Resolution via Iterative Refinement", arXiv 2104.07636)
concatenates the enlarged picture y with the noisy state at every step. As in SRDiff (Li et al.,
arXiv 2104.14951) the state is not the picture but its distance from y:

    x_0 = g (picture - y),   picture = y + x_0 / g

so that the network never has to carry the colours it is given through its normalisations.
"""

from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from dqlab.models.upscaling import enlarge

ANCESTRAL = 1.0
"""DDIM's eta that makes it the sampler of DDPM and of SR3."""


class SuperResolutionPipeline(DiffusionPipeline):
    """Sharp pictures from low-resolution ones.

    Args:
        unet: predicts the noise from `[N, 6, H, H]`: y, then x_t.
        scheduler: a DDIM scheduler.
        gain: g, which brings the missing detail to about unit size.

    """

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler, gain: float = 1.0):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(gain=gain)
        self.image_processor = VaeImageProcessor(do_resize=False)

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        num_inference_steps: int = 20,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Restore pictures.

        Args:
            image: one low-resolution picture or a list of them, also of different sizes: PIL
                images, arrays `[h, h, 3]` or tensors `[3, h, h]` in [0, 1]; or a batch as one
                tensor `[N, 3, h, h]`. h is the side of the result divided by 2 or 4.
            num_inference_steps: network calls.
            eta: DDIM's eta. 1 draws fresh noise at every step, as SR3 does, and restores
                better; 0 draws none, diffusers' default.
            generator: of the noise; a list holds one per picture.
            output_type: "pil", "np" `[N, H, H, 3]` in [0, 1], or "pt" `[N, 3, H, H]`.
            return_dict: an object with `.images`, or a tuple.

        Raises:
            InvalidInputError: if a picture's size is neither a half nor a quarter of the result's.

        """
        y = self._enlarged(image)
        x = randn_tensor(y.shape, generator=generator, device=y.device, dtype=y.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=y.device)
        for t in self.progress_bar(self.scheduler.timesteps):
            eps = self.unet(torch.cat([y, x], dim=1), t).sample
            x = self.scheduler.step(eps, t, x, eta=eta, generator=generator).prev_sample
        sharp = (y + x / self.config.gain).clamp(-1, 1)
        images = self.image_processor.postprocess(sharp, output_type=output_type)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _enlarged(self, image: Any) -> Tensor:
        """y, `[N, 3, H, H]` in [-1, 1], on the network's device."""
        each = image if isinstance(image, list | tuple) or _is_batch(image) else [image]
        size = self.unet.config.sample_size
        parts = [enlarge(self.image_processor.preprocess(one), size) for one in each]
        return torch.cat(parts).to(self.unet.device, self.unet.dtype)


def _is_batch(image: Any) -> bool:
    return isinstance(image, Tensor) and image.ndim == 4
