"""The error budget: it adds up, and finds what was planted."""

import math

import pytest
import torch

import dqlab
from dqlab.errors import InvalidInputError
from dqlab.methods import recipe
from dqlab.methods.corrected import prediction_correction
from dqlab.metrics import error_powers
from dqlab.phenomena import budget as bg
from dqlab.trajectory import record

BIAS = torch.tensor([0.3, -0.3, 0.1])


def planted(k: float = 0.2, noise: float = 0.05, count: int = 64):
    """D and eps with a slope, biases that cancel over channels, and channel means in eps."""
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([2.0, -1.0, 0.5]).reshape(1, 3, 1, 1)
    eps = torch.randn(count, 3, 8, 8, generator=generator) + means
    rest = torch.randn(eps.shape, generator=generator) * noise
    return k * eps + BIAS.reshape(1, 3, 1, 1) + rest, eps


def test_the_parts_add_up_to_the_mean_square() -> None:
    D, eps = planted()
    found = bg.budget(D, eps)
    assert float(found.total) == pytest.approx(float(D.double().square().mean()), rel=1e-9)
    assert float(found.shares().sum()) == pytest.approx(1.0)


def test_slope_and_biases_are_found_although_channels_have_means() -> None:
    D, eps = planted()
    found = bg.budget(D, eps)
    assert float(found.k) == pytest.approx(0.2, abs=0.003)
    assert found.b.tolist() == pytest.approx(BIAS.tolist(), abs=0.01)
    assert float(found.rest) == pytest.approx(0.05**2, rel=0.05)
    assert float(found.slope) == pytest.approx(0.2**2, rel=0.05)


def test_an_error_without_slope_or_rest_is_all_bias() -> None:
    _, eps = planted()
    found = bg.budget(BIAS.reshape(1, 3, 1, 1).expand_as(eps), eps)
    assert found.shares().tolist() == pytest.approx([1, 0, 0], abs=1e-9)


def test_a_constant_prediction_has_no_slope() -> None:
    D, _ = planted()
    found = bg.budget(D, torch.ones_like(D))
    assert float(found.k) == 0 and math.isfinite(float(found.total))


def test_shapes_must_agree() -> None:
    with pytest.raises(InvalidInputError, match=r"\(4, 3\) and the prediction \(4, 2\)"):
        bg.budget(torch.zeros(4, 3), torch.zeros(4, 2))


def test_moments_of_parts_average_to_those_of_the_whole() -> None:
    D, eps = planted()
    whole = bg.budget(D, eps)
    halves = torch.stack([bg.moments(D[i::2], eps[i::2]).mean(0) for i in range(2)])
    assert float(bg.budget_of(halves.mean(0)).rest) == pytest.approx(float(whole.rest))


@pytest.fixture(scope="module")
def asked(pipe, sampler):
    states, _ = record(pipe, [0, 1, 2], sampler)
    q = dqlab.quantize(pipe, recipe("ptqd", samples=2), 4, 8, sampler=sampler)
    return q, states, bg.predictions_on(states, q.unet)


def test_predictions_give_the_powers_that_asking_again_would(asked) -> None:
    q, states, found = asked
    again = error_powers(states, q.unet)
    assert found.powers()["noise"].tolist() == pytest.approx(again["noise"].tolist(), rel=1e-6)
    corrected = error_powers(states, q.unet, correct=prediction_correction(q))
    after = found.after(q).powers()["noise"]
    assert after.tolist() == pytest.approx(corrected["noise"].tolist(), rel=1e-6)
    assert after.tolist() != pytest.approx(again["noise"].tolist(), rel=1e-6)


def test_what_is_not_corrected_stays(asked, pipe, sampler) -> None:
    plain = dqlab.quantize(pipe, "rtn", 4, 8, sampler=sampler)
    assert asked[2].after(plain) is asked[2]


def test_budgets_have_a_row_per_step_that_adds_up(asked) -> None:
    table = bg.budgets(asked[2])
    assert table["step"].tolist() == [0, 1, 2]
    total = table[list(bg.PARTS)].sum(axis=1)
    for (_, eps, eps_q), whole in zip(asked[2], total, strict=True):
        assert whole == pytest.approx(float((eps_q - eps).square().mean()), rel=1e-5)
    assert {"mean_0", "mean_1", "mean_2"} <= set(table)


def test_shares_come_with_an_interval_that_holds_them(asked) -> None:
    table = bg.shares(asked[2], draws=50)
    assert table["part"].tolist() == list(bg.PARTS)
    assert table["share"].sum() == pytest.approx(1.0)
    assert (table["low"] <= table["high"]).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_bias_gains_what_its_share_says(share: float) -> None:
    """The estimate costs a little: at 2048 elements 1/2048 of the rest's power."""
    told = bg.bias_gain_db(share)
    assert bg.synthetic_bias_gain([share])["gain"][0] == pytest.approx(told, abs=0.05)
