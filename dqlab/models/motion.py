"""Videos of moving garments, made from still pictures: one motion at constant speed per clip.

A garment slides, turns, grows or shrinks over a still background. With u running from -1/2 in
the first frame to 1/2 in the last, and a_m the clip's share of the largest change of motion m:

    offset = u a_m d_m,   angle = u a_m w_m,   size = SIZE 2^(u a_m g_m)

so that every garment is upright and centred in mid-clip. Colours are those of the still
picture and never change, so that a change of colour between frames is an error that can be
measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dqlab.models.tint import Attributes, draw_tints, tint

MOTIONS: dict[str, tuple[float, float, float, float]] = {
    "moving left": (-8, 0, 0, 0),
    "moving right": (8, 0, 0, 0),
    "moving up": (0, -8, 0, 0),
    "moving down": (0, 8, 0, 0),
    "turning clockwise": (0, 0, 40, 0),
    "turning anticlockwise": (0, 0, -40, 0),
    "growing": (0, 0, 0, 0.5),
    "shrinking": (0, 0, 0, -0.5),
}
"""Largest change from first to last frame: pixels right, pixels down, degrees, octaves of size."""
SIZE = 0.9
"""Size in mid-clip, relative to the still picture, so that there is room to move."""
LEAST = 0.6
"""Every clip moves by at least this share of the largest change."""


@dataclass(frozen=True)
class Clips:
    """A batch of videos and what they show.

    Attributes:
        frames: float32 `[N, F, 3, 32, 32]` in [-1, 1].
        shown: garment, colour and background, int64 `[N]` each.
        motion: int64 `[N]`, index into `MOTIONS`.

    """

    frames: Tensor
    shown: Attributes
    motion: Tensor


def animate(grey: Tensor, motion: Tensor, amount: Tensor, frames: int) -> Tensor:
    """Move grey garments.

    Args:
        grey: `[N, H, W]`, 0 to 255.
        motion: int64 `[N]`, index into `MOTIONS`.
        amount: `[N]`, share of the largest change.
        frames: F.

    Returns:
        float32 `[N, F, H, W]`, 0 to 255.

    """
    count, height, width = grey.shape
    still = grey.float()[:, None].expand(-1, frames, -1, -1).reshape(-1, 1, height, width)
    where = _inverse_maps(motion, amount, frames, width, height).flatten(0, 1)
    grid = torch.nn.functional.affine_grid(where, list(still.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(still, grid, align_corners=False)
    return moved.view(count, frames, height, width)


def _inverse_maps(motion: Tensor, amount: Tensor, frames: int, width: int, height: int) -> Tensor:
    """Affine maps from where a pixel is to where it came from, `[N, F, 2, 3]`, in [-1, 1]."""
    largest = torch.tensor(list(MOTIONS.values()), device=motion.device)[motion]
    u = torch.linspace(-0.5, 0.5, frames, device=motion.device)
    right, down, degrees, octaves = (largest * amount[:, None])[:, :, None].mul(u).unbind(1)
    x, y = right * 2 / width, down * 2 / height
    angle, size = degrees * math.pi / 180, SIZE * 2**octaves
    cos, sin = angle.cos() / size, angle.sin() / size
    rows = [cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y]
    return torch.stack(rows, -1).view(*x.shape, 2, 3)


def film(grey: Tensor, labels: Tensor, frames: int, generator: torch.Generator) -> Clips:
    """Tint and move a batch of grey garments `[N, H, W]`, at random.

    Args:
        grey: uint8 `[N, 32, 32]`.
        labels: garments, int64 `[N]`.
        frames: frames per clip.
        generator: of all draws.

    """
    count, options = len(grey), {"generator": generator, "device": generator.device}
    colour, background = draw_tints(count, generator)
    motion = torch.randint(len(MOTIONS), (count,), **options)
    amount = LEAST + (1 - LEAST) * torch.rand(count, **options)
    moved = animate(grey, motion, amount, frames)
    per_frame = (attribute.repeat_interleave(frames) for attribute in (colour, background))
    pictures = tint(moved.flatten(0, 1), *per_frame).unflatten(0, (count, frames))
    return Clips(pictures, Attributes(labels, colour, background), motion)


def motions_of(seeds: Sequence[int]) -> Tensor:
    """How the garment of each seed is asked to move: drawn once, from the seed alone."""
    # Beyond every seed of a trajectory: the seed's own generator draws its attributes and noise.
    drawn = [torch.Generator().manual_seed(int(seed) + 2**32) for seed in seeds]
    motions = [int(torch.randint(len(MOTIONS), (), generator=g)) for g in drawn]
    return torch.tensor(motions, dtype=torch.int64)


def motion_captions(shown: Attributes, motion: Tensor) -> list[str]:
    """Captions with their motion: "a teal sneaker on a grey background turning clockwise"."""
    phrases = tuple(MOTIONS)
    pairs = zip(shown.captions(), motion.tolist(), strict=True)
    return [f"{caption} {phrases[m]}" for caption, m in pairs]
