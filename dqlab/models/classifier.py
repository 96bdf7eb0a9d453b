"""The attribute classifier: garment, colour and background of a 32x32 picture.

It judges generated pictures (agreement, confidence, flips) and its 64-number feature is what
dqlab's Frechet distance is computed on. It is small and ours: its distances are never called
FID, and compare only with each other.
"""

import json
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from dqlab.errors import CheckpointError
from dqlab.models.fashion import GARMENTS
from dqlab.models.tint import BACKGROUNDS, COLOURS, Attributes
from dqlab.paths import models_dir

HEADS = {"garment": len(GARMENTS), "colour": len(COLOURS), "background": len(BACKGROUNDS)}
FEATURES = 64
Module = TypeVar("Module", bound=nn.Module)


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU()
    )


class AttributeClassifier(nn.Module):
    """Four convolutions, mean and max pooling, a 64-number feature, three linear heads."""

    num_features = FEATURES
    title = "attribute classifier"

    def __init__(self, width: int = 32):
        super().__init__()
        self.width = width
        self.trunk = nn.Sequential(
            _block(3, width, 1),
            _block(width, 2 * width, 2),
            _block(2 * width, 2 * width, 1),
            _block(2 * width, 4 * width, 2),
        )
        self.feature = nn.Linear(8 * width, FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, n) for name, n in HEADS.items()})

    def features(self, images: Tensor) -> Tensor:
        """`[N, 3, 32, 32]` in [-1, 1] -> `[N, 64]`."""
        maps = self.trunk(images)
        pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)
        return self.feature(pooled)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per head: "garment" `[N, 10]`, "colour" `[N, 8]`, "background" `[N, 4]`."""
        feature = nn.functional.silu(self.features(images))
        return {name: head(feature) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Attributes, Tensor]:
        """What each picture shows, and the mean confidence of the three answers, `[N]`."""
        probabilities = [self(images)[name].softmax(1) for name in HEADS]
        best = [p.max(1) for p in probabilities]
        answers = Attributes(*(b.indices for b in best))
        return answers, torch.stack([b.values for b in best]).mean(0)


def save_classifier(model: AttributeClassifier, folder: Path) -> None:
    """Write `config.json` and fp16 weights."""
    write_weights(model, {"width": model.width}, folder)


def load_classifier(folder: Path | None = None) -> AttributeClassifier:
    """The shipped classifier (fp32, eval), or the one in `folder`."""
    return open_weights(AttributeClassifier, folder or models_dir() / "attribute-classifier")


def write_weights(model: nn.Module, config: dict[str, int], folder: Path) -> None:
    """Write `config.json`, the arguments that build `model`, and its fp16 weights."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: t.half().contiguous() for name, t in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def open_weights(build: type[Module], folder: Path) -> Module:
    """The network of class `build` that `write_weights` left in `folder`: fp32, eval, frozen.

    Raises:
        CheckpointError: if the folder holds none, or is damaged.

    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    what = build.title
    repair = f"Restore it from the repository, or train it: dqlab train {what.replace(' ', '-')}"
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(f"No {what} in {folder}. {repair}")
    try:
        model = build(**json.loads((folder / "config.json").read_text()))
        weights = load_file(folder / "model.safetensors")
        model.load_state_dict({name: t.float() for name, t in weights.items()})
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"The {what} in {folder} is damaged ({error}). {repair}") from error
    return model.eval().requires_grad_(False)
