"""Directions of the corrections: what is counted, and that the shipped numbers give outcomes."""

import pandas as pd
import pytest

from dqlab.phenomena import correction_checks as checks
from dqlab.phenomena import correction_claims as cc
from dqlab.phenomena import correction_directions as cd
from dqlab.phenomena import error_correction as measured
from dqlab.phenomena import stored
from dqlab.phenomena.ledger import OUTCOMES


def gains(*values: float, name: str = "ptqd", bits: str = cc.FIRST) -> pd.DataFrame:
    named = {"sampler": cc.ETA_0, "bits": bits, "name": name, "over": "rtn"}
    return pd.DataFrame([named | {"step": i, "gain": g} for i, g in enumerate(values)])


def test_steps_are_counted_within_their_bounds() -> None:
    steps = pd.concat([gains(0.5, -0.1, 0.2, 3.0), gains(-9.0, name="d2-dpm")])
    assert cd.share_of_steps(steps, "ptqd", 0.0) == 75.0
    assert cd.share_of_steps(steps, "ptqd", 0.0, high=1.0) == 50.0
    assert cd.share_of_steps(steps, "d2-dpm", 0.0) == 0.0


def test_a_wrong_setting_is_weighed_against_the_right_one() -> None:
    rows = [("W4A8", "ptqd", "right", 23.0), ("W4A8", "ptqd", "wrong", 22.5),
            ("W4A4", "ptqd", "wrong", 9.0)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["bits", "method", "option", "db"])
    assert cd.margin_db(table, "ptqd", "right", "wrong") == pytest.approx(0.5)


def test_frames_of_both_results_are_put_under_each_other() -> None:
    one, two = {"a": gains(1.0), "b": gains(2.0)}, {"a": gains(3.0), "c": gains(4.0)}
    both = cd.joined(one, two)
    assert both["a"]["gain"].tolist() == [1.0, 3.0] and set(both) == {"a", "b", "c"}


def test_every_direction_has_an_outcome_on_the_shipped_network() -> None:
    both = cd.joined(*(stored.load(name).frames for name in (measured.NAME, checks.NAME)))
    pairs = both["errors"][["sampler", "bits", "name", "seed"]]
    assert not pairs.duplicated().any()
    found = cd.directions(both)
    assert len(found) > 25 and {claim.outcome for claim in found.values()} <= set(OUTCOMES)
    assert all(claim.low <= claim.measured <= claim.high for claim in found.values())
