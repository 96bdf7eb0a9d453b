"""What the recipes of image models in latent space share: latents, conditions and the loss."""

from abc import abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from dqlab.engine import Budget
from dqlab.engine.state import load_state, save_state
from dqlab.models import captions, fashion
from dqlab.models.loading import open_component, weights_hash
from dqlab.models.recipes.base import (
    Recipe,
    SupervisedTask,
    add_noise,
    blended_weights,
    weighted_noise_loss,
)
from dqlab.models.tint import dress
from dqlab.paths import models_dir, state_dir

Ask = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Noise prediction from noisy latents, timesteps and caption numbers, one row each."""


class LatentRecipe(Recipe):
    """Noise prediction on stored latents of tinted training images, told what they show.

    One caption in ten is dropped, for classifier-free guidance.
    """

    @abstractmethod
    def model(self) -> nn.Module:
        """Everything that is trained, untrained."""

    @abstractmethod
    def ask(self, module: nn.Module, device: torch.device) -> Ask:
        """How the network is asked; caption number `captions.NO_CAPTION` means no caption."""

    def scheduler(self):
        """DDIM, trailing spacing, no clipping (latents have no bounds)."""
        from diffusers import DDIMScheduler

        return DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing="trailing",
            clip_sample=False,
            steps_offset=1,
        )

    def task(self, budget: Budget, device: torch.device) -> SupervisedTask:
        """Noise prediction on the stored latents."""
        torch.manual_seed(0)
        module = self.model().to(device)
        stored = stored_latents(self.settings["views_of_each_image"])
        latents, shown = (t.to(device) for t in stored)
        abar = self.scheduler().alphas_cumprod.to(device)
        weights, ask = blended_weights(abar), self.ask(module, device)

        def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
            options = {"generator": generator, "device": device}
            rows = torch.randint(len(latents), (self.settings["batch"],), **options)
            clean = latents[rows].float()
            dropped = torch.rand(len(rows), **options) < self.settings["drop_caption"]
            caption = torch.where(dropped, captions.NO_CAPTION, shown[rows].long())
            t = torch.randint(len(abar), (len(rows),), **options)
            return clean, torch.randn(clean.shape, **options), t, caption

        def objective(batch: tuple[Tensor, ...]) -> Tensor:
            clean, noise, t, caption = batch
            predicted = ask(add_noise(abar, clean, noise, t), t, caption)
            return weighted_noise_loss(predicted, noise, weights[t])

        return self.supervised(module, draw, objective, budget)


def stored_latents(views: int) -> tuple[Tensor, Tensor]:
    """Scaled fp16 latents `[views N, 4, 8, 8]` of the N training images, and caption numbers.

    Each view tints all images anew. Encoded once per autoencoder and kept beside the resumable
    states, for every recipe that asks for the same.

    Raises:
        CheckpointError: if the autoencoder is missing, or the stored latents are damaged.

    """
    autoencoder = open_component("autoencoder", "AutoencoderKL")
    grey, labels = fashion.load_split("train")
    maker = weights_hash(models_dir() / "autoencoder")
    path = state_dir() / "latents" / f"{maker}-{len(grey)}x{views}.safetensors"
    if not path.is_file():
        parts = [_encoded(autoencoder, grey, labels, view) for view in range(views)]
        latents, shown = (torch.cat(column) for column in zip(*parts, strict=True))
        save_state(path, {"latents": latents, "shown": shown}, {})
    tensors, _ = load_state(path)
    return tensors["latents"], tensors["shown"]


@torch.no_grad()
def _encoded(autoencoder, grey: Tensor, labels: Tensor, view: int) -> tuple[Tensor, Tensor]:
    """Latents and caption numbers of all images in the tints of one view."""
    generator, latents, numbers = torch.Generator().manual_seed(view), [], []
    for rows in torch.arange(len(grey)).split(256):
        images, shown = dress(grey[rows], labels[rows], generator)
        mean = autoencoder.encode(images).latent_dist.mean
        latents.append((mean * autoencoder.config.scaling_factor).half())
        numbers.append(captions.caption_number(shown).to(torch.int16))
    return torch.cat(latents), torch.cat(numbers)


def all_captions() -> list[str]:
    """Every caption in the order of its number, then the empty one."""
    return [*captions.every_attribute().captions(), ""]


def initialise(network: nn.Module, silent: Iterable[nn.Linear]) -> None:
    """A transformer's start: Xavier throughout, zero where a branch or the output begins.

    Peebles and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748, section 3.2:
    every block starts as the identity. diffusers leaves this to whoever trains.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    for layer in silent:
        nn.init.zeros_(layer.weight)
