"""The video feature net: what a clip shows and how it moves, in 64 numbers.

The attribute classifier's convolutions, copied and frozen, look at every frame; two small
convolutions over space and time see the change between frames, which pooled features of single
frames hide. dqlab's Frechet distance between videos is computed on the 64 numbers. It is small
and ours: its distances are never called FVD, and compare only with each other.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from dqlab.models.classifier import (
    FEATURES,
    HEADS,
    AttributeClassifier,
    open_weights,
    write_weights,
)
from dqlab.models.motion import MOTIONS
from dqlab.paths import models_dir


class VideoFeatures(nn.Module):
    """Frozen maps of every frame, two 3-D convolutions, a 64-number feature, linear heads.

    Clips may have any number of frames from two on.
    """

    num_features = FEATURES
    title = "video features"

    def __init__(self, width: int = 32, squeezed: int = 16):
        super().__init__()
        self.width, self.squeezed = width, squeezed
        self.trunk = AttributeClassifier(width).trunk.requires_grad_(False)
        self.squeeze = nn.Conv2d(4 * width, squeezed, 1)
        self.early = nn.Conv3d(squeezed, 32, 3, (1, 2, 2), 1)
        self.late = nn.Conv3d(32, 64, 3, (1, 2, 2), 1)
        # The garment moves over 8x8 maps, so that 2x2 places of the last map are kept apart.
        self.feature = nn.Linear(64 * 4 + 8 * width, FEATURES)
        heads = HEADS | {"motion": len(MOTIONS)}
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, n) for name, n in heads.items()})

    def features(self, frames: Tensor) -> Tensor:
        """`[N, F, 3, 32, 32]` in [-1, 1] -> `[N, 64]`."""
        maps = self.trunk(frames.flatten(0, 1))
        seen = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)
        over_time = self.squeeze(maps).unflatten(0, frames.shape[:2]).transpose(1, 2)
        hidden = nn.functional.silu(self.early(over_time))
        hidden = nn.functional.silu(self.late(hidden)).mean(2).flatten(1)
        still = seen.unflatten(0, frames.shape[:2]).mean(1)
        return self.feature(torch.cat([hidden, still], dim=1))

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """Logits per head: the attribute classifier's three, and "motion" `[N, 8]`."""
        feature = nn.functional.silu(self.features(frames))
        return {name: head(feature) for name, head in self.heads.items()}


def save_video_features(model: VideoFeatures, folder: Path) -> None:
    """Write `config.json` and fp16 weights."""
    write_weights(model, {"width": model.width, "squeezed": model.squeezed}, folder)


def load_video_features(folder: Path | None = None) -> VideoFeatures:
    """The shipped video feature net (fp32, eval), or the one in `folder`."""
    return open_weights(VideoFeatures, folder or models_dir() / "video-features")
