"""autoencoder: 32x32x3 pictures to 8x8x4 latents and back, the VAE of every latent model here.

Loss: mean squared and mean absolute error, plus a small distance between the attribute
classifier's feature maps (what a perceptual loss does, with our own judge), plus 1e-6 KL.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dqlab.engine import Budget
from dqlab.models import fashion
from dqlab.models.classifier import load_classifier
from dqlab.models.recipes.base import Recipe, SupervisedTask
from dqlab.models.tint import dress


class AutoencoderRecipe(Recipe):
    """Train a small `AutoencoderKL`."""

    name = "autoencoder"
    minutes = 45
    settings: ClassVar[dict[str, Any]] = {
        "widths": [16, 32, 56],
        "batch": 64,
        "lr": 2e-3,
        "ema_decay": 0.998,
        "kl_weight": 1e-6,
        "perceptual_weight": 0.1,
    }

    def model(self) -> nn.Module:
        """The untrained autoencoder."""
        from diffusers import AutoencoderKL

        widths = self.settings["widths"]
        return AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=widths,
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            sample_size=32,
            mid_block_add_attention=False,
        )

    def task(self, budget: Budget, device: torch.device) -> SupervisedTask:
        """Reconstruction of freshly tinted training images."""
        torch.manual_seed(0)
        module = self.model().to(device, memory_format=torch.channels_last)
        judge = load_classifier().to(device, memory_format=torch.channels_last)
        grey, labels = (t.to(device) for t in fashion.load_split("train"))
        size = self.settings["batch"]

        def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            options = {"generator": generator, "device": device}
            rows = torch.randint(len(grey), (size,), **options)
            images, _ = dress(grey[rows], labels[rows], generator)
            return images, torch.randn(size, 4, 8, 8, **options)

        def objective(batch: tuple[Tensor, Tensor]) -> Tensor:
            images, noise = batch
            images = images.contiguous(memory_format=torch.channels_last)
            posterior = module.encode(images).latent_dist
            decoded = module.decode(posterior.mean + posterior.std * noise).sample
            loss = reconstruction_loss(images, decoded, judge, self.settings["perceptual_weight"])
            return loss + self.settings["kl_weight"] * posterior.kl().mean()

        return self.supervised(module, draw, objective, budget)

    def export(self, module: nn.Module, folder: Path) -> None:
        """An `AutoencoderKL` folder, fp16; its `scaling_factor` makes latents unit scale."""
        plain = self.model()
        plain.load_state_dict(module.state_dict())
        plain.register_to_config(scaling_factor=latent_scale(plain))
        plain.half().save_pretrained(folder)


def reconstruction_loss(
    images: Tensor, decoded: Tensor, judge: nn.Module, perceptual_weight: float
) -> Tensor:
    """Mean squared and absolute error, and the distance of the judge's feature maps."""
    error = decoded.float() - images
    pixels = error.square().mean() + error.abs().mean()
    seen = judge.trunk(decoded).float() - judge.trunk(images).float()
    return pixels + perceptual_weight * seen.square().mean()


@torch.no_grad()
def latent_scale(autoencoder: nn.Module) -> float:
    """1 / standard deviation of the latents of 512 held-out pictures (Rombach et al. 2022)."""
    grey, labels = fashion.load_held_out()
    images, _ = dress(grey[:512], labels[:512], torch.Generator().manual_seed(0))
    latents = autoencoder.eval().encode(images).latent_dist.mean
    return round(1 / float(latents.std()), 4)
