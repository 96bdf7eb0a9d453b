"""Prompt fidelity: does the picture show what its caption asked for?

The attribute classifier reads garment, colour and background; agreement is the share that equals
the caption. The classifier errs too, so agreement stands beside its accuracy on real pictures.
"""

from torch import Tensor

from dqlab.models.classifier import HEADS, AttributeClassifier, load_classifier
from dqlab.models.tint import Attributes


def prompt_fidelity(
    images: Tensor, asked: Attributes, classifier: AttributeClassifier | None = None
) -> dict[str, float]:
    """Share of pictures that show the asked garment, colour, background, and all three.

    Args:
        images: `[N, 3, 32, 32]` in [0, 1].
        asked: what the captions said.
        classifier: default: the shipped one.

    """
    seen, _ = (classifier or load_classifier()).read(images * 2 - 1)
    hits = {head: getattr(seen, head) == getattr(asked, head) for head in HEADS}
    every = hits["garment"] & hits["colour"] & hits["background"]
    return {head: float(hit.float().mean()) for head, hit in (hits | {"all": every}).items()}
