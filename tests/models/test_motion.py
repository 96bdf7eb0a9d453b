"""Clips of moving garments: what moves, what stays, and what is said about it."""

import pytest
import torch

from dqlab.models import captions
from dqlab.models.motion import (
    LEAST,
    MOTIONS,
    SIZE,
    animate,
    film,
    motion_captions,
    motions_of,
)

NAMES = tuple(MOTIONS)


def bar() -> torch.Tensor:
    """A bright upright bar in the middle of a 32x32 picture."""
    grey = torch.zeros(1, 32, 32)
    grey[:, 10:22, 14:18] = 255
    return grey


def moved(name: str, frames: int = 9, amount: float = 1.0) -> torch.Tensor:
    motion = torch.tensor([NAMES.index(name)])
    return animate(bar(), motion, torch.tensor([amount]), frames)[0]


def centre(frames: torch.Tensor) -> torch.Tensor:
    """Centre of brightness of each frame, `[F, 2]`: right, down, in pixels from the middle."""
    at = torch.arange(32) - 15.5
    total = frames.sum((1, 2))
    return (
        torch.stack([(frames.sum(1) * at).sum(1), (frames.sum(2) * at).sum(1)], 1) / total[:, None]
    )


@pytest.mark.parametrize(
    ("name", "right", "down"),
    [("moving left", -8, 0), ("moving right", 8, 0), ("moving up", 0, -8), ("moving down", 0, 8)],
)
def test_slides_where_its_name_says(name, right, down) -> None:
    where = centre(moved(name))
    torch.testing.assert_close(where[4], torch.zeros(2), atol=0.01, rtol=0)
    wanted = torch.tensor([right, down]) * torch.linspace(-0.5, 0.5, 9)[:, None]
    torch.testing.assert_close(where, wanted, atol=0.05, rtol=0)


def test_half_the_amount_is_half_the_way() -> None:
    where = centre(moved("moving right", amount=0.5))
    torch.testing.assert_close(where[-1] - where[0], torch.tensor([4.0, 0]), atol=0.05, rtol=0)


@pytest.mark.parametrize(("name", "octaves"), [("growing", 0.5), ("shrinking", -0.5)])
def test_grows_by_its_area(name, octaves) -> None:
    area = moved(name).sum((1, 2)) / bar().sum()
    assert float(area[4]) == pytest.approx(SIZE**2, rel=0.02)
    assert float(area[-1] / area[0]) == pytest.approx(4**octaves, rel=0.03)


@pytest.mark.parametrize(
    ("name", "sign"), [("turning clockwise", 1), ("turning anticlockwise", -1)]
)
def test_turns_as_seen_on_the_screen(name, sign) -> None:
    """The upper end of an upright bar goes right in a clockwise turn; 20 degrees at the end."""
    upper = moved(name)[:, :16]
    at = torch.arange(32) - 15.5
    right = (upper.sum(1) * at).sum(1) / upper.sum((1, 2))
    assert float(sign * right[-1]) > 0.5
    assert float(sign * right[0]) < -0.5
    assert float(right[4]) == pytest.approx(0, abs=0.01)


def test_clips_come_from_the_generator_alone() -> None:
    grey = torch.randint(0, 256, (6, 32, 32), dtype=torch.uint8)
    labels = torch.arange(6)
    first, again, other = (
        film(grey, labels, 8, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.frames.shape == (6, 8, 3, 32, 32)
    assert torch.equal(first.frames, again.frames)
    assert not torch.equal(first.frames, other.frames)
    assert torch.equal(first.shown.garment, labels)


def test_colours_are_constant_over_the_frames() -> None:
    """Far from the garment every frame is the background, and its brightest part the colour."""
    grey = bar().to(torch.uint8).repeat(20, 1, 1)
    clips = film(grey, torch.zeros(20, dtype=torch.int64), 16, torch.Generator().manual_seed(0))
    corner, middle = clips.frames[..., 0, 0], clips.frames[..., 15:17, 15:17].mean((-2, -1))
    torch.testing.assert_close(corner, corner[:, :1].expand_as(corner))
    still = clips.motion >= NAMES.index("turning clockwise")
    assert still.any()
    torch.testing.assert_close(
        middle[still], middle[still][:, :1].expand_as(middle[still]), atol=1e-5, rtol=0
    )


def test_every_clip_moves() -> None:
    labels = torch.zeros(64, dtype=torch.int64)
    grey = bar().to(torch.uint8).repeat(64, 1, 1)
    clips = film(grey, labels, 8, torch.Generator().manual_seed(3))
    assert set(clips.motion.tolist()) == set(range(len(MOTIONS)))
    change = (clips.frames[:, -1] - clips.frames[:, 0]).abs().amax((1, 2, 3))
    assert (change > 0.1).all()
    assert 0 < LEAST <= 1


def test_motions_of_seeds_are_fixed_and_apart_from_their_attributes() -> None:
    seeds = list(range(400))
    motions = motions_of(seeds)
    assert torch.equal(motions, motions_of(seeds))
    assert torch.equal(motions[7:9], motions_of([7, 8]))
    assert set(motions.tolist()) == set(range(len(MOTIONS)))
    colours = captions.attributes_of(seeds).colour
    # Independent draws among eight agree once in eight: 50 of 400, standard deviation 6.6.
    assert 20 < int((motions == colours).sum()) < 80


def test_captions_end_in_their_motion() -> None:
    shown = captions.attributes_of([0])
    [text] = motion_captions(shown, torch.tensor([NAMES.index("turning clockwise")]))
    assert text == f"{shown.captions()[0]} turning clockwise"
