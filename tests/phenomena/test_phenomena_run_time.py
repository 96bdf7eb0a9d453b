"""The cost of ranges at run time: four quantizers of one range, and claims with branches."""

import pandas as pd
import pytest
import torch

from dqlab.phenomena import run_time_ranges as measured
from dqlab.phenomena import stored


def test_all_round_alike(pipe, sampler) -> None:
    """The widest row's extremes are the tensor's, so one row has the same range in all of them."""
    x = measured.widest(pipe, measured.Plan(rows=4, sampler=sampler))
    assert x.shape[0] == 4 and x.shape[2:] == (8, 8)
    rounded = [measured.rounder(kind, x[:1])(x[:1]) for kind in measured.KINDS]
    static, table, by_sample, found = rounded
    assert torch.equal(static, table) and torch.equal(static, by_sample)
    torch.testing.assert_close(static, found)


def test_every_round_asks_all(pipe, sampler) -> None:
    frames, tensors = measured.measure(pipe, measured.Plan(rows=3, rounds=2, sampler=sampler))
    assert tensors == {}
    assert frames["times"]["kind"].tolist() == [*measured.KINDS] * 2
    assert (frames["times"]["milliseconds"] > 0).all()
    assert frames["outcomes"]["name"].tolist() == ["slower", "table"]


def times(table: float, run_time: float) -> pd.DataFrame:
    each = {"static": 1.0, "table": table, "table, by sample": 9.0, "run time": run_time}
    rows = [(i, kind, 8, (1 + i) * value) for i in range(3) for kind, value in each.items()]
    return pd.DataFrame(rows, columns=["round", "kind", "values", "milliseconds"])


@pytest.mark.parametrize(
    ("table", "run_time", "told"),
    [
        (1.0, 1.6, ["reproduces", "reproduces"]),
        (1.2, 1.2, ["weaker here", "weaker here"]),
        (1.5, 0.9, ["does not reproduce here"] * 2),
    ],
)
def test_claims_have_branches(table: float, run_time: float, told: list[str]) -> None:
    """A slow round slows all, so it does not count."""
    found = measured.claims(times(table, run_time))
    assert [claim.outcome for claim in found.values()] == told
    assert found["slower"].measured == found["slower"].low == pytest.approx(run_time)


def test_the_shipped_outcomes_follow_from_the_shipped_numbers() -> None:
    frames = stored.load(measured.NAME).frames
    assert frames["times"]["values"].min() >= 1e6
    again = measured.outcomes(frames)
    assert again["outcome"].tolist() == frames["outcomes"]["outcome"].tolist()
