import pytest
import torch
from tiny_models import seeded

from dqlab.errors import CheckpointError, InvalidInputError
from dqlab.metrics import PairedError, features, frechet_distance, frechet_with_error, paired_error
from dqlab.metrics.frechet import stored_features
from dqlab.models.classifier import FEATURES, HEADS, AttributeClassifier


@pytest.fixture(scope="module")
def classifier():
    return seeded(lambda: AttributeClassifier(8)).eval().requires_grad_(False)


def gaussian(count: int = 400):
    return torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(1))


def test_identical_sets_have_no_distance() -> None:
    assert frechet_distance(gaussian(), gaussian()) == pytest.approx(0, abs=1e-3)


def test_a_shift_of_the_mean_counts_squared() -> None:
    shift = torch.zeros(FEATURES)
    shift[3], shift[9] = 3.0, 4.0
    assert frechet_distance(gaussian(), gaussian() + shift) == pytest.approx(25, rel=1e-4)


def test_closed_form_for_scaled_gaussians() -> None:
    """C2 = a^2 C1, so that the trace term is (1 - a)^2 tr C1."""
    first, a = gaussian(), 2.5
    mean, spread = first.double().mean(0), first.double().T.cov().trace()
    expected = (1 - a) ** 2 * (mean.square().sum() + spread)
    assert frechet_distance(first, a * first) == pytest.approx(float(expected), rel=1e-4)


def test_closed_form_for_known_covariances() -> None:
    """Uncorrelated features with variances 1 and 4: sum (1 - 2)^2 over features."""
    first = torch.linalg.qr(gaussian() - gaussian().mean(0))[0]
    first = (first - first.mean(0)) * (len(first) - 1) ** 0.5
    assert frechet_distance(first, 2 * first) == pytest.approx(FEATURES, rel=1e-3)


def test_symmetric_and_independent_of_order() -> None:
    first, second = gaussian(), gaussian(300) * 1.3 + 0.2
    distance = frechet_distance(first, second)
    assert frechet_distance(second, first) == pytest.approx(distance, rel=1e-4)
    assert frechet_distance(first.flip(0), second) == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize("few", [0, 1, FEATURES])
def test_too_few_images_are_refused(few) -> None:
    for pair in ((gaussian(), gaussian(few)), (gaussian(few), gaussian())):
        with pytest.raises(InvalidInputError, match=rf"^{few} images.*at least 128"):
            frechet_distance(*pair)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_refused(bad) -> None:
    broken = gaussian()
    broken[5, 5] = bad
    with pytest.raises(InvalidInputError, match="second feature set holds NaN"):
        frechet_distance(gaussian(), broken)


def test_error_bar_comes_from_the_parts() -> None:
    reference, images = gaussian(), gaussian(400) + 0.1
    whole, error, frame = frechet_with_error(reference, images, parts=4)
    assert whole == pytest.approx(frechet_distance(reference, images))
    assert len(frame) == 4
    assert error == pytest.approx(frame["distance"].std() / 2)


def test_features_take_images_in_unit_range(classifier) -> None:
    images = torch.rand(300, 3, 32, 32)
    found = features(images, classifier)
    assert found.shape == (300, FEATURES)
    torch.testing.assert_close(found[:7], classifier.features(images[:7] * 2 - 1))


def test_paired_error_by_hand(classifier) -> None:
    reference = torch.rand(4, 3, 8, 8)
    other = reference.clone()
    other[1] += 0.1
    other[2, 0, 0, 0] += 1.0
    found = paired_error(reference, other, classifier)
    assert found.mse.tolist() == pytest.approx([0, 0.01, 1 / 192, 0], abs=1e-7)
    assert found.flips.keys() == HEADS.keys()
    same = paired_error(reference, reference, classifier)
    assert same.median == 0
    assert set(same.flips.values()) == {0.0}


def test_flips_are_shares_of_pairs() -> None:
    class Reads:
        def read(self, images):
            from dqlab.models.tint import Attributes

            level = (images.mean((1, 2, 3)) > 0).long()
            return Attributes(level, torch.zeros_like(level), 3 * level), None

    dark, bright = torch.zeros(4, 3, 2, 2), torch.ones(4, 3, 2, 2)
    mixed = torch.cat([bright[:1], dark[:3]])
    found = paired_error(dark, mixed, Reads())
    assert found.flips == {"garment": 0.25, "colour": 0.0, "background": 0.25}


def test_interval_of_the_median_holds_it() -> None:
    found = PairedError(torch.rand(41), {})
    low, high = found.interval()
    assert low <= found.median <= high
    assert low < high
    assert found.interval() == (low, high)
    constant = PairedError(torch.full((9,), 0.5), {})
    assert constant.interval() == (0.5, 0.5)


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (4, 3, 4, 4), (0, 3, 8, 8)])
def test_images_that_make_no_pairs_are_refused(shape, classifier) -> None:
    reference = torch.rand(4 if shape[0] else 0, 3, 8, 8)
    with pytest.raises(InvalidInputError, match=r"make no pairs.*same seeds"):
        paired_error(reference, torch.rand(shape), classifier)


@pytest.mark.parametrize("shape", [(2, 3, 33, 32), (2, 1, 32, 32)])
def test_pictures_the_classifier_was_not_made_for_have_no_flips(shape) -> None:
    assert paired_error(torch.zeros(shape), torch.ones(shape)).flips == {}


def test_damaged_reference_features_are_named(tmp_path) -> None:
    path = tmp_path / "features.safetensors"
    made = stored_features(path, "net", lambda: torch.ones(3, 2))
    assert torch.equal(stored_features(path, "net", lambda: torch.zeros(3, 2)), made)
    assert not stored_features(path, "other", lambda: torch.zeros(3, 2)).any()
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=r"features.safetensors is damaged.*delete it"):
        stored_features(path, "other", lambda: torch.zeros(3, 2))
