"""Intervals: known cases, and that pairing removes what both sides share."""

import math

import pandas as pd
import pytest
import torch

from dqlab.errors import InvalidInputError
from dqlab.metrics import (
    bootstrap_gain_db,
    bootstrap_mean_sqnr_db,
    bootstrap_median,
    bootstrap_ratio,
    median,
    sqnr_intervals,
    sqnr_per_step,
    summarise_artefacts,
    wilson,
)


def powers(noise: torch.Tensor) -> pd.DataFrame:
    """Unit signal at two steps; `noise` `[seeds]` at both."""
    rows = [
        (step, 999 - step, 3000 + i, 1.0, float(n)) for step in (0, 1) for i, n in enumerate(noise)
    ]
    return pd.DataFrame(rows, columns=["step", "t", "seed", "signal", "noise"])


def test_wilson_at_known_points() -> None:
    """Wilson 1927: none of n gives [0, z^2 / (n + z^2)], half of them a symmetric interval."""
    z2 = 1.959964**2
    assert wilson(0.0, 10) == pytest.approx((0, z2 / (10 + z2)))
    assert wilson(1.0, 10) == pytest.approx((10 / (10 + z2), 1))
    low, high = wilson(0.5, 20)
    assert low + high == pytest.approx(1)
    assert high - low == pytest.approx(math.sqrt(z2 / (20 + z2)))


def test_median_of_an_even_number_lies_in_the_middle() -> None:
    assert median(torch.tensor([1.0, 0.0, 1.0, 0.0])) == 0.5
    assert median(torch.tensor([[3.0, 1.0, 2.0], [9.0, 7.0, 8.0]])).tolist() == [2.0, 8.0]
    assert math.isinf(median(torch.tensor([0.0, math.inf, math.inf, math.inf])))


def test_median_of_equal_values_is_certain() -> None:
    assert bootstrap_median(torch.full((7,), 0.25)) == (0.25, 0.25)
    values = torch.rand(40)
    low, high = bootstrap_median(values)
    assert low <= float(values.median()) <= high


def test_ratio_is_paired() -> None:
    theirs = torch.rand(30) + 0.1
    assert bootstrap_ratio(theirs * 3, theirs) == pytest.approx((3, 3))
    low, high = bootstrap_ratio(theirs.flip(0) * 3, theirs)
    assert low < high
    assert bootstrap_ratio(torch.zeros(5), torch.zeros(5)) == (1, 1)
    assert bootstrap_ratio(torch.ones(5), torch.zeros(5)) == (math.inf, math.inf)


def test_gain_is_paired() -> None:
    """A tenth of the noise everywhere is 10 dB, however much trajectories differ."""
    noise = torch.logspace(-3, 0, 12)
    gain = bootstrap_gain_db(powers(noise / 10), powers(noise))
    assert gain == pytest.approx((10, 10))
    low, high = bootstrap_mean_sqnr_db(powers(noise))
    assert high - low > 1
    exact = powers(torch.zeros(12))
    assert bootstrap_gain_db(exact, exact) == (0, 0)
    assert bootstrap_gain_db(exact, powers(noise)) == (math.inf, math.inf)


@pytest.mark.parametrize("other", [torch.ones(4), torch.ones(6)])
def test_gain_needs_the_same_trajectories(other) -> None:
    with pytest.raises(InvalidInputError, match="different steps or seeds"):
        bootstrap_gain_db(powers(torch.ones(5)), powers(other))


def test_every_step_has_its_interval() -> None:
    found = sqnr_intervals(powers(torch.logspace(-2, -1, 9)))
    assert list(found["sqnr_db"]) == list(sqnr_per_step(powers(torch.logspace(-2, -1, 9))).sqnr_db)
    assert (found["low"] < found["sqnr_db"]).all()
    assert (found["sqnr_db"] < found["high"]).all()


def test_artefacts_are_summed_up_by_their_medians() -> None:
    from dqlab.metrics import artefacts

    reference = torch.rand(5, 3, 16, 16) * 0.5
    pairs = artefacts(reference, reference + 0.2)
    found = summarise_artefacts(pairs).set_index("measure")
    assert found["median"]["colour_shift"] == pytest.approx(0.2, abs=1e-6)
    assert found["of_a_copy"]["detail_ratio"] == 1
    assert (found["low"] <= found["median"]).all()
    assert (found["median"] <= found["high"]).all()
    assert set(found["artefact"]) == {
        "colour shift", "over-exposure", "structure change", "detail blurring",
    }  # fmt: skip
