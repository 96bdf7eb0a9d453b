"""binary-latent: garments as 8x8 cells of 16 bits, and a transformer that denoises the bits.

Two stages. First an autoencoder learns with one drawn bit per code entry and a straight-through
gradient; then a transformer learns, by plain cross-entropy, which bits of a noisy code have been
flipped. Its condition is the garment, one class token, dropped for one picture in ten: colours are
left for the network to choose, so that samples show what it has learned of them. Method: Binary
Latent Diffusion (Wang et al., CVPR 2023). Pipeline: BinaryLatentPipeline of dqlab.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dqlab.engine import Budget
from dqlab.models import fashion
from dqlab.models.classifier import load_classifier
from dqlab.models.fashion import GARMENTS
from dqlab.models.recipes.autoencoder import reconstruction_loss
from dqlab.models.recipes.base import Part, Recipe, StagedTask
from dqlab.models.tint import dress
from dqlab.reference import binary_latent_diffusion as paper


class BinaryLatent(Recipe):
    """Train `BinaryAutoencoder`, then `BinaryTransformer` on its codes."""

    name = "binary-latent"
    minutes = 60
    settings: ClassVar[dict[str, Any]] = {
        "bits": 16,
        "embedding": 64,
        "autoencoder_widths": [16, 32, 64],
        "transformer_width": 144,
        "layers": 6,
        "heads": 6,
        "batch": 64,
        "autoencoder_lr": 2e-3,
        "transformer_lr": 1e-3,
        "autoencoder_share": 0.35,
        "ema_decay": 0.998,
        "perceptual_weight": 0.1,
        "drop_class": 0.1,
        "schedule": "linear",
        "steps": 64,
    }

    def scheduler(self):
        """The Bernoulli process with the exact posterior.

        The released sampler's, "plugin", pulls every step towards fair coins; with few steps it
        shows in the pictures.
        """
        from dqlab.models.pipelines.binary_latent import BernoulliScheduler

        return BernoulliScheduler(
            self.settings["steps"], self.settings["schedule"], posterior="mixture"
        )

    def model(self) -> nn.ModuleDict:
        """The untrained autoencoder and transformer."""
        from dqlab.models.pipelines.binary_networks import BinaryAutoencoder, BinaryTransformer

        settings = self.settings
        return nn.ModuleDict(
            {
                "autoencoder": BinaryAutoencoder(
                    settings["bits"], settings["embedding"], settings["autoencoder_widths"]
                ),
                "transformer": BinaryTransformer(
                    settings["bits"],
                    width=settings["transformer_width"],
                    layers=settings["layers"],
                    heads=settings["heads"],
                    classes=len(GARMENTS),
                    num_train_timesteps=settings["steps"],
                ),
            }
        )

    def task(self, budget: Budget, device: torch.device) -> StagedTask:
        """Reconstruction, then flip prediction, both of freshly tinted training images."""
        torch.manual_seed(0)
        module = self.model().to(device)
        module["autoencoder"].to(memory_format=torch.channels_last)
        grey, labels = (t.to(device) for t in fashion.load_split("train"))

        def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
            options = {"generator": generator, "device": device}
            rows = torch.randint(len(grey), (self.settings["batch"],), **options)
            images, _ = dress(grey[rows], labels[rows], generator)
            chance = torch.rand(len(rows), self.settings["bits"], 8, 8, **options)
            images = images.contiguous(memory_format=torch.channels_last)
            return images, chance, labels[rows]

        share = self.settings["autoencoder_share"]
        first = self._autoencoding(module, draw, share)
        second = self._denoising(module, draw, 1 - share, device)
        return StagedTask(
            module, [first, second], self.fingerprint, budget, self.settings["ema_decay"]
        )

    def _autoencoding(self, module: nn.ModuleDict, draw: Any, share: float) -> Part:
        """Stage A."""
        network = module["autoencoder"]
        judge = load_classifier().to(next(network.parameters()).device)

        def objective(batch: tuple[Tensor, ...]) -> Tensor:
            images, chance, _ = batch
            decoded = network(images, chance)
            return reconstruction_loss(images, decoded, judge, self.settings["perceptual_weight"])

        return Part("bits", share, network, draw, objective, self.settings["autoencoder_lr"])

    def _denoising(
        self, module: nn.ModuleDict, draw: Any, share: float, device: torch.device
    ) -> Part:
        """Stage B; codes are drawn anew each time, which augments them."""
        encoder, network = module["autoencoder"], module["transformer"]
        scheduler = self.scheduler()

        def extended(generator: torch.Generator) -> tuple[Tensor, ...]:
            options = {"generator": generator, "device": device}
            images, chance, labels = draw(generator)
            dropped = torch.rand(len(labels), **options) < self.settings["drop_class"]
            labels = labels.masked_fill(dropped, len(GARMENTS))
            t = torch.randint(1, self.settings["steps"] + 1, (len(labels),), **options)
            cells = (len(labels), chance[0, 0].numel(), self.settings["bits"])
            return images, chance, labels, t, torch.rand(cells, **options)

        def objective(batch: tuple[Tensor, ...]) -> Tensor:
            images, chance, labels, t, noise = batch
            with torch.no_grad():
                clean = encoder.encode(images, chance)
            x_t = scheduler.add_noise(clean, noise, t)
            logits = network(x_t, t, class_labels=labels).sample
            return binary_cross_entropy_with_logits(logits, paper.flips(clean, x_t))

        return Part("flips", share, network, extended, objective, self.settings["transformer_lr"])

    def export(self, module: nn.Module, folder: Path) -> None:
        """A BinaryLatentPipeline folder with fp16 weights."""
        from dqlab.models.pipelines.binary_latent import BinaryLatentPipeline

        plain = self.model()
        plain.load_state_dict(module.state_dict())
        parts = {name: network.half() for name, network in plain.items()}
        BinaryLatentPipeline(**parts, scheduler=self.scheduler()).save_pretrained(folder)
