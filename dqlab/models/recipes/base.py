"""What a training recipe is, and the noise-prediction loss most of them share."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dqlab.engine import Budget, Progress, Stage, cosine
from dqlab.errors import NotApplicableError
from dqlab.models.loading import file_sums
from dqlab.paths import models_dir


@dataclass(frozen=True)
class Lessons:
    """What a denoiser learns from, whoever trains it: batches, and the loss of one.

    Attributes:
        draw: one batch, drawn only from the generator, noise and timesteps included.
        loss: a scalar to minimise, from the denoiser and a batch.

    """

    draw: Callable[[torch.Generator], Any]
    loss: Callable[[nn.Module, Any], Tensor]


class Recipe(ABC):
    """How one shipped model is trained and exported."""

    name: ClassVar[str]
    minutes: ClassVar[float]
    """Default time budget, for two slow cores."""
    settings: dict[str, Any]
    """Everything that shapes the result; recorded in the model card."""
    starts_from: ClassVar[tuple[str, ...]] = ()
    """Shipped models whose weights it begins with or keeps; their hashes are recorded."""

    @abstractmethod
    def task(self, budget: Budget, device: torch.device) -> Any:
        """The engine's task: data, loss and stages."""

    @abstractmethod
    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the trained module as a folder that `dqlab.load` and diffusers read."""

    def supervised(
        self,
        module: nn.Module,
        draw: Callable[[torch.Generator], Any],
        objective: Callable[[Any], Tensor],
        budget: Budget,
    ) -> "SupervisedTask":
        """One stage of AdamW on `objective(draw(g))` at the recipe's rate and averaging."""
        settings = self.settings
        return SupervisedTask(
            module,
            draw,
            objective,
            self.fingerprint,
            budget,
            settings["lr"],
            settings["ema_decay"],
            self.parameters(module),
        )

    def parameters(self, module: nn.Module) -> list[Any]:
        """What is trained, or groups of it with an `lr` of their own."""
        return [p for p in module.parameters() if p.requires_grad]

    def lessons(self, device: torch.device, batch: int | None = None) -> Lessons:
        """The data and the loss it trains with, for another training of the same denoiser.

        Args:
            device: of the batches.
            batch: rows in one; by default the recipe's own.

        Raises:
            NotApplicableError: if this recipe's loss needs more than the denoiser.

        """
        raise NotApplicableError(
            f"The recipe of {self.name} trains more than a denoiser, so its lessons cannot be "
            "given to one. Use pixel-unet, or a pipeline of your own with data=clean samples."
        )

    def origins(self) -> dict[str, dict[str, str]]:
        """SHA-256 of every weight file of the models it starts from."""
        return {name: file_sums(models_dir() / name) for name in self.starts_from}

    @property
    def fingerprint(self) -> str:
        """Short hash of name, settings and origins: a resumable state belongs to exactly one."""
        origins = [self.origins()] if self.starts_from else []
        text = json.dumps([self.name, self.settings, *origins], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass
class SupervisedTask:
    """A module, its sampler of batches and its loss, in one cosine stage of AdamW."""

    module: nn.Module
    draw: Callable[[torch.Generator], Any]
    objective: Callable[[Any], Tensor]
    fingerprint: str
    budget: Budget
    lr: float
    ema_decay: float | None
    parameters: Sequence[Any]
    warmup: float = 0.02

    def __post_init__(self) -> None:
        self.stages = [
            Stage(
                self.budget,
                self.parameters,
                self.lr,
                cosine(self.warmup),
                clip_norm=1.0,
                name=self.fingerprint.rsplit("-", 1)[0],
            )
        ]

    def batch(self, generator: torch.Generator) -> Any:
        """Draw one batch."""
        return self.draw(generator)

    def loss(self, batch: Any, progress: Progress) -> Tensor:
        """The recipe's loss."""
        return self.objective(batch)


@dataclass
class Part:
    """One network of a `StagedTask`: its share of the budget, its batches and its loss."""

    name: str
    share: float
    network: nn.Module
    draw: Callable[[torch.Generator], Any]
    objective: Callable[[Any], Tensor]
    lr: float

    def stage(self, budget: Budget, start: Callable[[], None]) -> Stage:
        """AdamW on the network's own parameters, along a cosine."""
        return Stage(
            budget.share(self.share),
            list(self.network.parameters()),
            self.lr,
            cosine(0.02),
            clip_norm=1.0,
            name=self.name,
            start=start,
        )


class StagedTask:
    """Networks trained one after the other; saved, resumed and averaged as one module."""

    def __init__(
        self,
        module: nn.Module,
        parts: Sequence[Part],
        fingerprint: str,
        budget: Budget,
        ema_decay: float | None,
    ):
        self.module, self.fingerprint, self.ema_decay = module, fingerprint, ema_decay
        self.part = parts[0]
        self.stages = [part.stage(budget, partial(self.begin, part)) for part in parts]

    def begin(self, part: Part) -> None:
        """From now on, batches and losses are those of `part`."""
        self.part = part

    def batch(self, generator: torch.Generator) -> Any:
        """Draw one batch."""
        return self.part.draw(generator)

    def loss(self, batch: Any, progress: Progress) -> Tensor:
        """The current part's loss."""
        return self.part.objective(batch)


def add_noise(alphas_cumprod: Tensor, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al. 2020, eq. 4); t is int64 `[N]`."""
    abar = alphas_cumprod[t].view(-1, *[1] * (clean.ndim - 1))
    return abar.sqrt() * clean + (1 - abar).sqrt() * noise


def blended_weights(alphas_cumprod: Tensor, cap: float = 10.0) -> Tensor:
    """Loss weight per timestep, `[T]`, mean 1: half uniform, half min(1/SNR, cap).

    The uniform half sharpens detail at low noise; the other half is the x_0 loss (capped), which
    decides mean colour where the uniform loss hardly sees it (t > 600).
    """
    inverse_snr = ((1 - alphas_cumprod) / alphas_cumprod).clamp(max=cap)
    return 0.5 + 0.5 * inverse_snr / inverse_snr.mean()


def weighted_noise_loss(predicted: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
    """Mean over the batch of weight[n] * mean((predicted - noise)^2)."""
    per_sample = (predicted.float() - noise).square().flatten(1).mean(1)
    return (weight * per_sample).mean()
