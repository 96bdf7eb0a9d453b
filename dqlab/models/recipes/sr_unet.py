"""sr-unet: super-resolution of tinted garments by 2 and by 4, the small cousin of SR3.

One U-Net restores both: the bicubic enlargement of a low-resolution picture is concatenated with
the noisy state, and each training picture draws its own factor. The state is what the enlargement
lacks, so that the colours need not pass the network's normalisations, times 6, which makes it
about unit size (its standard deviation is 0.12 for factor 2 and 0.18 for factor 4). The network
predicts noise, as SR3 and its binary descendants do, so every method for noise predictors applies.
Pipeline: SuperResolutionPipeline of dqlab; plain diffusers opens the folder `unet`.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dqlab.engine import Budget
from dqlab.models import fashion
from dqlab.models.recipes.base import (
    Recipe,
    SupervisedTask,
    add_noise,
    blended_weights,
    weighted_noise_loss,
)
from dqlab.models.tint import dress
from dqlab.models.upscaling import SCALES, blur


class SuperResolutionUNet(Recipe):
    """Train `UNet2DModel` with six input channels on pairs of sharp and enlarged pictures."""

    name = "sr-unet"
    minutes = 30
    settings: ClassVar[dict[str, Any]] = {
        "widths": [24, 48, 48],
        "groups": 6,
        "batch": 32,
        "lr": 2e-3,
        "ema_decay": 0.998,
        "weighting": "0.5 + 0.5 min(1/SNR, 10), normalised",
        "schedule": "linear, 1000 steps",
        "gain": 6.0,
        "largest_detail": 6.0,
    }

    def scheduler(self):
        """DDIM, trailing spacing; x_0 clipped to `largest_detail`, which is seldom reached."""
        from diffusers import DDIMScheduler

        return DDIMScheduler(
            beta_schedule="linear",
            timestep_spacing="trailing",
            clip_sample_range=self.settings["largest_detail"],
        )

    def model(self) -> nn.Module:
        """The untrained network."""
        from diffusers import UNet2DModel

        return UNet2DModel(
            sample_size=32,
            in_channels=6,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=self.settings["widths"],
            norm_num_groups=self.settings["groups"],
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            attention_head_dim=24,
        )

    def task(self, budget: Budget, device: torch.device) -> SupervisedTask:
        """Noise prediction on the detail of freshly tinted training images."""
        torch.manual_seed(0)
        module = self.model().to(device, memory_format=torch.channels_last)
        grey, labels = (t.to(device) for t in fashion.load_split("train"))
        abar = self.scheduler().alphas_cumprod.to(device)
        weights = blended_weights(abar)
        size = self.settings["batch"]

        def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
            options = {"generator": generator, "device": device}
            rows = torch.randint(len(grey), (size,), **options)
            images, _ = dress(grey[rows], labels[rows], generator)
            given = blur(images, torch.randint(len(SCALES), (size,), **options))
            t = torch.randint(len(abar), (size,), **options)
            return images, given, torch.randn(images.shape, **options), t

        def objective(batch: tuple[Tensor, ...]) -> Tensor:
            images, given, noise, t = batch
            detail = self.settings["gain"] * (images - given)
            seen = torch.cat([given, add_noise(abar, detail, noise, t)], dim=1)
            predicted = module(seen.contiguous(memory_format=torch.channels_last), t).sample
            return weighted_noise_loss(predicted, noise, weights[t])

        return self.supervised(module, draw, objective, budget)

    def export(self, module: nn.Module, folder: Path) -> None:
        """A SuperResolutionPipeline folder with fp16 weights."""
        from dqlab.models.pipelines.super_resolution import SuperResolutionPipeline

        plain = self.model()
        plain.load_state_dict(module.state_dict())
        pipe = SuperResolutionPipeline(plain.half(), self.scheduler(), self.settings["gain"])
        pipe.save_pretrained(folder)
