"""Directions of the corrections: what is counted, and that the shipped numbers give outcomes."""

import pandas as pd
import pytest

from dqlab.phenomena import correction_claims as cc
from dqlab.phenomena import correction_directions as cd
from dqlab.phenomena.ledger import OUTCOMES


def gains(*values: float, name: str = "ptqd", bits: str = cc.FIRST) -> pd.DataFrame:
    named = {"sampler": cc.ETA_0, "bits": bits, "name": name, "over": "rtn"}
    return pd.DataFrame([named | {"step": i, "gain": g} for i, g in enumerate(values)])


def test_steps_are_counted_within_their_bounds() -> None:
    steps = pd.concat([gains(0.5, -0.1, 0.2, 3.0), gains(-9.0, name="d2-dpm")])
    assert cd.share_of_steps(steps, "ptqd", 0.0) == 75.0
    assert cd.share_of_steps(steps, "ptqd", 0.0, high=1.0) == 50.0
    assert cd.share_of_steps(steps, "d2-dpm", 0.0) == 0.0


def test_a_row_is_found_with_its_interval_whatever_its_columns_are_called() -> None:
    rows = [("ptqd", "wrong", 0.5, 0.4, 0.6), ("ptqd", "right", 0.0, -0.1, 0.1)]
    table = pd.DataFrame(rows, columns=["method", "option", "gain", "low", "high"])
    assert cd.of_row(table, "gain", method="ptqd", option="wrong") == (0.5, 0.4, 0.6)
    named = table.rename(columns={"low": "gain_low", "high": "gain_high"})
    assert cd.of_row(named, "gain", option="right") == (0.0, -0.1, 0.1)


def two_sets(alone: float, whole: float, wide: float) -> dict[str, pd.DataFrame]:
    """Sets of one correction, without and with its variance part; half the interval's width."""
    numbers = [{"name": "other", "distance": 2.0, "variance": alone, "pictures": 8},
               {"name": "it", "distance": 1.5, "variance": whole, "pictures": 8}]  # fmt: skip
    table = pd.DataFrame(numbers)
    for key in ("distance", "variance"):
        table[f"{key}_low"], table[f"{key}_high"] = table[key] - 0.1, table[key] + 0.1
    room = {"name": "it", "distance": -0.5, "distance_low": -0.6, "distance_high": -0.4}
    gap = whole - alone
    room |= {"variance": gap, "variance_low": gap - wide, "variance_high": gap + wide}
    return {"sets": table, "made room": pd.DataFrame([room])}


@pytest.mark.parametrize(
    ("alone", "whole", "closer"),
    [(1.2, 1.1, 10.0), (0.8, 0.9, 10.0), (0.9, 0.8, -10.0), (1.05, 0.95, 0.0)],
)
def test_pixels_come_closer_from_either_side(alone, whole, closer) -> None:
    middle, low, high = cd._pixels_closer(two_sets(alone, whole, 0.02), "it")
    assert middle == pytest.approx(closer, abs=1e-9)
    assert (low, high) == pytest.approx((closer - 2, closer + 2))


def test_the_fall_of_a_set_is_of_the_set_without_the_variance_part() -> None:
    assert cd._set_fall(two_sets(1, 1, 0), "it") == pytest.approx((25.0, 20.0, 30.0))


def test_frames_of_both_results_are_put_under_each_other() -> None:
    one, two = {"a": gains(1.0), "b": gains(2.0)}, {"a": gains(3.0), "c": gains(4.0)}
    both = cd.joined(one, two)
    assert both["a"]["gain"].tolist() == [1.0, 3.0] and set(both) == {"a", "b", "c"}


def test_every_direction_has_an_outcome_on_the_shipped_network() -> None:
    both = cd.joined(*(one.frames for one in cd.shipped()))
    pairs = both["errors"][["sampler", "bits", "name", "seed"]]
    assert not pairs.duplicated().any()
    found = cd.directions(both)
    assert len(found) > 25 and {claim.outcome for claim in found.values()} <= set(OUTCOMES)
    assert all(claim.low <= claim.measured <= claim.high for claim in found.values())
