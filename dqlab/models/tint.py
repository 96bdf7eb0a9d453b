"""Tinted garments: grey Fashion-MNIST images become RGB pictures that a caption can describe.

With v the grey value in [0, 1], mask m = min(1, 2.5 v), garment colour c, background colour b:

    image = (1 - m) b + m c (0.35 + 0.65 v)

so that the garment keeps its shading. Eight garment colours and four backgrounds turn the
survey's qualitative failures (colour shift, blurred edges, lost prompt) into measurable ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dqlab import seeds
from dqlab.models import fashion
from dqlab.models.fashion import GARMENTS

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.14),
    "orange": (0.98, 0.55, 0.10),
    "yellow": (0.98, 0.90, 0.15),
    "green": (0.15, 0.70, 0.20),
    "teal": (0.10, 0.75, 0.75),
    "blue": (0.15, 0.30, 0.90),
    "purple": (0.55, 0.15, 0.75),
    "pink": (0.98, 0.45, 0.75),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "white": (1.00, 1.00, 1.00),
    "black": (0.04, 0.04, 0.04),
    "grey": (0.50, 0.50, 0.50),
    "beige": (0.87, 0.78, 0.62),
}


@dataclass(frozen=True)
class Attributes:
    """What a batch of pictures shows: int64 indices `[N]` into the three vocabularies."""

    garment: Tensor
    colour: Tensor
    background: Tensor

    def captions(self) -> list[str]:
        """One sentence per picture, such as "a teal sneaker on a grey background"."""
        colours, grounds = tuple(COLOURS), tuple(BACKGROUNDS)
        rows = zip(
            self.garment.tolist(), self.colour.tolist(), self.background.tolist(), strict=True
        )
        return [_caption(GARMENTS[g], colours[c], grounds[b]) for g, c, b in rows]


def _caption(garment: str, colour: str, background: str) -> str:
    article = "an" if colour[0] in "aeiou" else "a"
    item = f"{colour} {garment}" if garment == "trousers" else f"{article} {colour} {garment}"
    return f"{item} on a {background} background"


def tint(grey: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """Paint grey garments.

    Args:
        grey: uint8 `[N, H, W]`.
        colour: int64 `[N]`, index into `COLOURS`.
        background: int64 `[N]`, index into `BACKGROUNDS`.

    Returns:
        float32 `[N, 3, H, W]` in [-1, 1].

    """
    v = grey.to(torch.float32).div(255.0).unsqueeze(1)
    mask = (2.5 * v).clamp(max=1.0)
    c = _palette(COLOURS, grey)[colour][:, :, None, None]
    b = _palette(BACKGROUNDS, grey)[background][:, :, None, None]
    image = (1 - mask) * b + mask * c * (0.35 + 0.65 * v)
    return image.mul(2).sub(1)


def _palette(table: dict[str, tuple[float, float, float]], like: Tensor) -> Tensor:
    return torch.tensor(list(table.values()), device=like.device)


def draw_tints(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random garment and background colour indices, int64 `[count]` each, on its device."""
    device = generator.device
    colour = torch.randint(len(COLOURS), (count,), generator=generator, device=device)
    background = torch.randint(len(BACKGROUNDS), (count,), generator=generator, device=device)
    return colour, background


def dress(grey: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Attributes]:
    """Tint a batch with random colours.

    Returns:
        float32 pictures `[N, 3, H, W]` in [-1, 1] and what they show.

    """
    colour, background = draw_tints(len(grey), generator)
    return tint(grey, colour, background), Attributes(labels, colour, background)


def held_out_pictures() -> tuple[Tensor, Attributes]:
    """The 1,000 shipped test images in their fixed tints, `[N, 3, 32, 32]` in [-1, 1]."""
    return dress(*fashion.load_held_out(), torch.Generator().manual_seed(seeds.TINT))
