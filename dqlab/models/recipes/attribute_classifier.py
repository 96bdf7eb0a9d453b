"""attribute-classifier: reads garment, colour and background; also the Frechet feature net."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dqlab.engine import Budget
from dqlab.models import fashion
from dqlab.models.classifier import HEADS, AttributeClassifier, save_classifier
from dqlab.models.recipes.base import Recipe, SupervisedTask
from dqlab.models.tint import Attributes, dress


class AttributeClassifierRecipe(Recipe):
    """Three cross-entropies on tinted garments with a little noise and random shifts."""

    name = "attribute-classifier"
    minutes = 8
    settings: ClassVar[dict[str, Any]] = {
        "width": 32,
        "batch": 128,
        "lr": 2e-3,
        "ema_decay": 0.998,
        "noise_std_up_to": 0.1,
        "shift_pixels": 2,
    }

    def task(self, budget: Budget, device: torch.device) -> SupervisedTask:
        """Classification of freshly tinted training images."""
        torch.manual_seed(0)
        module = AttributeClassifier(self.settings["width"])
        module.to(device, memory_format=torch.channels_last)
        grey, labels = (t.to(device) for t in fashion.load_split("train"))

        def draw(generator: torch.Generator) -> tuple[Tensor, Attributes]:
            rows = torch.randint(
                len(grey), (self.settings["batch"],), generator=generator, device=device
            )
            images, shown = dress(self._shift(grey[rows], generator), labels[rows], generator)
            return self._roughen(images, generator), shown

        def objective(batch: tuple[Tensor, Attributes]) -> Tensor:
            images, shown = batch
            logits = module(images.contiguous(memory_format=torch.channels_last))
            losses = [nn.functional.cross_entropy(logits[h], getattr(shown, h)) for h in HEADS]
            return torch.stack(losses).sum()

        return self.supervised(module, draw, objective, budget)

    def _shift(self, grey: Tensor, generator: torch.Generator) -> Tensor:
        """Move the whole batch by up to `shift_pixels` (the padding makes rolling harmless)."""
        most = self.settings["shift_pixels"]
        device = grey.device
        dx, dy = torch.randint(-most, most + 1, (2,), generator=generator, device=device).tolist()
        return grey.roll((dy, dx), dims=(1, 2))

    def _roughen(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Add noise of a random strength per picture: generated pictures are never quite clean."""
        options = {"generator": generator, "device": images.device}
        strength = torch.rand(len(images), 1, 1, 1, **options) * self.settings["noise_std_up_to"]
        return images + strength * torch.randn(images.shape, **options)

    def export(self, module: nn.Module, folder: Path) -> None:
        """`config.json` and fp16 safetensors."""
        save_classifier(module, folder)
