"""video-features: reads garment, colours and motion of a clip; the video Frechet feature net.

Starts from the attribute classifier's convolutions, which stay as they are.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dqlab.engine import Budget
from dqlab.models import fashion
from dqlab.models.classifier import HEADS, load_classifier
from dqlab.models.motion import Clips, film
from dqlab.models.recipes.base import Recipe, SupervisedTask
from dqlab.models.video_features import VideoFeatures, save_video_features


class VideoFeaturesRecipe(Recipe):
    """Four cross-entropies on clips of 8 or 16 frames with a little noise."""

    name = "video-features"
    minutes = 8
    settings: ClassVar[dict[str, Any]] = {
        "frames": [8, 16],
        "batch": 32,
        "lr": 2e-3,
        "ema_decay": 0.998,
        "noise_std_up_to": 0.1,
    }
    starts_from = ("attribute-classifier",)

    def model(self) -> VideoFeatures:
        """The net before training: a judge's maps, and layers that know nothing."""
        judge = load_classifier()
        module = VideoFeatures(judge.width)
        module.trunk.load_state_dict(judge.trunk.state_dict())
        return module

    def task(self, budget: Budget, device: torch.device) -> SupervisedTask:
        """Classification of freshly made clips of training images."""
        torch.manual_seed(0)
        module = self.model().to(device)
        grey, labels = (t.to(device) for t in fashion.load_split("train"))
        lengths = self.settings["frames"]

        def draw(generator: torch.Generator) -> tuple[Tensor, Clips]:
            options = {"generator": generator, "device": device}
            rows = torch.randint(len(grey), (self.settings["batch"],), **options)
            frames = lengths[int(torch.randint(len(lengths), (), **options))]
            clips = film(grey[rows], labels[rows], frames, generator)
            return self._roughened(clips.frames, generator), clips

        def objective(batch: tuple[Tensor, Clips]) -> Tensor:
            frames, clips = batch
            logits = module(frames)
            answers = {head: getattr(clips.shown, head) for head in HEADS}
            answers["motion"] = clips.motion
            losses = [nn.functional.cross_entropy(logits[h], answers[h]) for h in answers]
            return torch.stack(losses).sum()

        return self.supervised(module, draw, objective, budget)

    def _roughened(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Add noise of a random strength per clip: generated videos are never quite clean."""
        options = {"generator": generator, "device": frames.device}
        strength = torch.rand(len(frames), 1, 1, 1, 1, **options)
        noise = torch.randn(frames.shape, **options)
        return frames + self.settings["noise_std_up_to"] * strength * noise

    def export(self, module: nn.Module, folder: Path) -> None:
        """`config.json` and fp16 safetensors."""
        save_video_features(module, folder)
