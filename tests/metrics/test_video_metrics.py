"""Constancy and agreement of clips by hand, their errors, and what is refused."""

import pytest
import torch
from tiny_models import seeded

from dqlab.errors import InvalidInputError
from dqlab.metrics import video
from dqlab.models.classifier import FEATURES
from dqlab.models.motion import MOTIONS
from dqlab.models.tint import Attributes
from dqlab.models.video_features import VideoFeatures


class Levels:
    """Stands in for the classifier: the brightness of a frame is its garment, in tenths."""

    def read(self, images):
        level = ((images / 2 + 0.5).mean((1, 2, 3)) * 10).round().long()
        still = torch.zeros_like(level)
        return Attributes(level, still, still), level / 10


@pytest.fixture(scope="module")
def net():
    return seeded(lambda: VideoFeatures(8)).eval().requires_grad_(False)


def clips(levels: list[list[int]]) -> torch.Tensor:
    """One 8x8 clip per row, one evenly bright frame per number, in tenths."""
    return (torch.tensor(levels) / 10)[:, :, None, None, None].expand(-1, -1, 3, 8, 8)


def test_share_of_frames_like_the_majority() -> None:
    found = video.frame_consistency(clips([[3, 3, 3, 3], [5, 5, 5, 2]]), Levels())
    assert found["garment"].mean == pytest.approx((1 + 0.75) / 2)
    assert found["colour"] == (1, 0)
    assert found["all"] == found["garment"]
    # Two clips, 1 and 3/4: standard deviation 0.25 / sqrt 2, divided by sqrt 2.
    assert found["garment"].standard_error == pytest.approx(0.125)


def test_all_attributes_must_agree_in_the_same_frame() -> None:
    class Apart(Levels):
        def read(self, images):
            shown, confidence = super().read(images)
            return Attributes(shown.garment, shown.garment // 5, shown.background), confidence

    found = video.frame_consistency(clips([[4, 4, 4, 3], [4, 4, 6, 4]]), Apart())
    assert found["colour"].mean == pytest.approx((1 + 0.75) / 2)
    assert found["all"].mean == found["garment"].mean == 0.75


def test_confidence_is_the_mean_over_frames() -> None:
    found = video.frame_confidence(clips([[2, 4], [6, 8]]), Levels())
    assert found.mean == pytest.approx(0.5)
    assert found.standard_error == pytest.approx(0.2)


def test_agreement_counts_what_was_asked(net) -> None:
    videos = torch.rand(6, 4, 3, 32, 32)
    seen = video.video_answers(videos, net)
    assert seen.keys() == {"garment", "colour", "background", "motion"}
    other = (seen["motion"] + torch.tensor([0, 0, 0, 1, 1, 1])) % len(MOTIONS)
    found = video.video_agreement(videos, {"motion": other, "colour": seen["colour"]}, net)
    assert found["motion"].mean == 0.5
    assert found["colour"] == (1, 0)


def test_features_take_clips_in_unit_range_and_any_batch(net) -> None:
    videos = torch.rand(40, 2, 3, 32, 32)
    found = video.video_features(videos, net)
    assert found.shape == (40, FEATURES)
    torch.testing.assert_close(found[35:], net.features(videos[35:] * 2 - 1), atol=1e-5, rtol=1e-4)


def test_distance_is_told_as_a_multiple_of_real_clips() -> None:
    draws = torch.Generator().manual_seed(0)
    reference, real = (torch.randn(n, FEATURES, generator=draws) for n in (800, 400))
    shifted = real.clone()
    shifted[:, 0] += 3
    found = video.video_frechet(reference, shifted, real)
    # Only the mean of one feature differs: 3 more, squared, and the sets' own difference there.
    gap = float(real[:, 0].mean() - reference[:, 0].mean())
    assert found["distance"] - found["real_clips"] == pytest.approx(9 + 6 * gap, rel=1e-3)
    assert found["multiple"] == pytest.approx(found["distance"] / found["real_clips"])
    assert found["standard_error"] > 0


def test_too_few_clips_have_no_distance() -> None:
    few = torch.randn(10, FEATURES)
    with pytest.raises(InvalidInputError, match="at least 128"):
        video.video_frechet(few, few, few)
