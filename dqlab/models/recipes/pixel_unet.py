"""pixel-unet: an unconditional DDPM on tinted garments, the small cousin of DDIM on CIFAR-10.

Scale-shift time conditioning (ADM's way), 6 groups so that no GroupNorm group straddles a
shortcut concatenation, attention at 8x8, fixed-variance noise prediction.
"""

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dqlab.engine import Budget
from dqlab.models import fashion
from dqlab.models.recipes.base import (
    Lessons,
    Recipe,
    SupervisedTask,
    add_noise,
    blended_weights,
    weighted_noise_loss,
)
from dqlab.models.tint import dress


class PixelUNet(Recipe):
    """Train `UNet2DModel` on 32x32 tinted Fashion-MNIST."""

    name = "pixel-unet"
    minutes = 90
    settings: ClassVar[dict[str, Any]] = {
        "widths": [24, 48, 96],
        "groups": 6,
        "batch": 64,
        "lr": 1e-3,
        "ema_decay": 0.999,
        "weighting": "0.5 + 0.5 min(1/SNR, 10), normalised",
        "schedule": "linear, 1000 steps",
    }

    def scheduler(self):
        """DDIM, trailing spacing, clipped x_0 (needed by a pixel model)."""
        from diffusers import DDIMScheduler

        return DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing")

    def model(self) -> nn.Module:
        """The untrained network."""
        from diffusers import UNet2DModel

        return UNet2DModel(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=self.settings["widths"],
            norm_num_groups=self.settings["groups"],
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            attention_head_dim=24,
            resnet_time_scale_shift="scale_shift",
        )

    def task(self, budget: Budget, device: torch.device) -> SupervisedTask:
        """Noise prediction on freshly tinted training images."""
        torch.manual_seed(0)
        module = self.model().to(device, memory_format=torch.channels_last)
        lessons = self.lessons(device)
        return self.supervised(module, lessons.draw, partial(lessons.loss, module), budget)

    def lessons(self, device: torch.device, batch: int | None = None) -> Lessons:
        """Freshly tinted training images at random timesteps."""
        grey, labels = (t.to(device) for t in fashion.load_split("train"))
        abar = self.scheduler().alphas_cumprod.to(device)
        weights = blended_weights(abar)
        size = batch or self.settings["batch"]

        def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
            options = {"generator": generator, "device": device}
            rows = torch.randint(len(grey), (size,), **options)
            images, _ = dress(grey[rows], labels[rows], generator)
            t = torch.randint(len(abar), (size,), **options)
            return images, torch.randn(images.shape, **options), t

        def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
            images, noise, t = batch
            noisy = add_noise(abar, images, noise, t)
            predicted = module(noisy.contiguous(memory_format=torch.channels_last), t).sample
            return weighted_noise_loss(predicted, noise, weights[t])

        return Lessons(draw, loss)

    def export(self, module: nn.Module, folder: Path) -> None:
        """A plain DDIMPipeline folder with fp16 weights."""
        from diffusers import DDIMPipeline

        plain = self.model()
        plain.load_state_dict(module.state_dict())
        DDIMPipeline(plain.half(), self.scheduler()).save_pretrained(folder)
