"""Each artefact measure answers to its own kind of damage, by an amount known beforehand."""

import pytest
import torch

from dqlab.errors import InvalidInputError
from dqlab.metrics import artefacts


@pytest.fixture
def pictures() -> torch.Tensor:
    """Four pictures with a bright square on a mid-grey ground."""
    images = torch.full((4, 3, 32, 32), 0.4)
    for i in range(4):
        images[i, :, 8 : 16 + i, 8:20] = 0.8
    return images


def test_a_copy_shows_no_damage(pictures):
    found = artefacts(pictures, pictures.clone())
    changes = [c for c in found if not c.endswith("_ratio")]
    assert found[changes].abs().to_numpy().max() < 1e-6
    assert found[["variance_ratio", "detail_ratio"]].sub(1).abs().to_numpy().max() < 1e-6


def test_colour_shift_is_the_planted_one(pictures):
    shifted = pictures.clone()
    shifted[:, 2] -= 0.1
    found = artefacts(pictures, shifted)
    assert found["blue"].to_numpy() == pytest.approx(-0.1, abs=1e-6)
    assert found["colour_shift"].to_numpy() == pytest.approx(0.1, abs=1e-6)
    assert found["red"].abs().max() < 1e-6


def test_over_exposure_counts_saturated_values(pictures):
    burnt = pictures.clone()
    burnt[:, :, :16] = 1.0
    found = artefacts(pictures, burnt)
    assert found["saturation_change"].to_numpy() == pytest.approx(0.5)
    assert (found["variance_ratio"] > 1).all()


def test_contrast_scales_the_variance_by_its_square(pictures):
    found = artefacts(pictures, 0.4 + 1.2 * (pictures - 0.4))
    assert found["variance_ratio"].to_numpy() == pytest.approx(1.44, rel=1e-4)
    assert found["detail_ratio"].to_numpy() == pytest.approx(1.44, rel=1e-4)


def test_a_moved_object_changes_edges_but_not_detail(pictures):
    moved = pictures.roll(6, dims=3)
    found = artefacts(pictures, moved)
    assert (found["edge_change"] > 0.5).all()
    assert (found["structure_change"] > 0.1).all()
    assert found["detail_ratio"].to_numpy() == pytest.approx(1.0, rel=1e-4)


def test_blur_loses_detail(pictures):
    blurred = torch.nn.functional.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    assert (artefacts(pictures, blurred)["detail_ratio"] < 0.5).all()


def test_pairs_must_match(pictures):
    with pytest.raises(InvalidInputError, match="Pairs of images"):
        artefacts(pictures, pictures[:2])
