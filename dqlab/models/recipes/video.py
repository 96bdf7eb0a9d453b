"""What the recipes of video models share: clips made on the fly, their latents, and the loss."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from dqlab.engine import Budget
from dqlab.models import fashion
from dqlab.models.loading import open_component
from dqlab.models.motion import Clips, film
from dqlab.models.recipes.base import (
    SupervisedTask,
    add_noise,
    blended_weights,
    weighted_noise_loss,
)
from dqlab.models.recipes.latent import LatentRecipe


class VideoRecipe(LatentRecipe):
    """Noise prediction on latents of clips that are filmed and encoded anew for every batch.

    Latents are `[N, 4, F, 8, 8]`. Encoding a batch costs a tenth of a training step, so that no
    clip need ever be seen twice.
    """

    @abstractmethod
    def told(self, clips: Clips, generator: torch.Generator) -> Tensor:
        """What the network is told about each clip, int64, as `ask` reads it."""

    def task(self, budget: Budget, device: torch.device) -> SupervisedTask:
        """Noise prediction on fresh clips of training images."""
        torch.manual_seed(0)
        module = self.model().to(device)
        autoencoder = open_component("autoencoder", "AutoencoderKL").to(device)
        grey, labels = (t.to(device) for t in fashion.load_split("train"))
        abar = self.scheduler().alphas_cumprod.to(device)
        weights, ask = blended_weights(abar), self.ask(module, device)
        settings = self.settings

        def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
            options = {"generator": generator, "device": device}
            rows = torch.randint(len(grey), (settings["batch"],), **options)
            clips = film(grey[rows], labels[rows], settings["frames"], generator)
            clean, told = encode_frames(autoencoder, clips.frames), self.told(clips, generator)
            t = torch.randint(len(abar), (len(clean),), **options)
            return clean, torch.randn(clean.shape, **options), t, told

        def objective(batch: tuple[Tensor, ...]) -> Tensor:
            clean, noise, t, told = batch
            predicted = ask(add_noise(abar, clean, noise, t), t, told)
            return weighted_noise_loss(predicted, noise, weights[t])

        return self.supervised(module, draw, objective, budget)

    def dropped(self, count: int, generator: torch.Generator) -> Tensor:
        """Which of `count` captions are dropped, for classifier-free guidance; bool."""
        chance = torch.rand(count, generator=generator, device=generator.device)
        return chance < self.settings["drop_caption"]


@torch.no_grad()
def encode_frames(autoencoder: nn.Module, frames: Tensor) -> Tensor:
    """Scaled latents `[N, 4, F, h, w]` of clips `[N, F, 3, H, W]` in [-1, 1]."""
    mean = autoencoder.encode(frames.flatten(0, 1)).latent_dist.mean
    scaled = mean.float() * autoencoder.config.scaling_factor
    return scaled.unflatten(0, frames.shape[:2]).transpose(1, 2)
