"""What learning adds to calibration: everything is measured, and every branch is told."""

from dataclasses import replace

import pandas as pd
import pytest
from made_powers import made_powers

from dqlab.fit.profiles import JOINT
from dqlab.phenomena import fine_grained as measured
from dqlab.phenomena import stored


def test_everything_is_measured(pipe, sampler, shipped, monkeypatch) -> None:
    monkeypatch.setitem(JOINT, "teach", replace(JOINT["teach"], iterations=2, batch=4))
    plan = measured.Plan(samples=6, held_out=2, pictures=2, bits=(4, 8), sampler=sampler)
    frames, tensors = measured.measure(pipe, plan)
    assert tensors == {}
    assert frames["ledger"]["method"].tolist() == list(measured.METHODS)
    assert frames["pictures"].groupby("method").size().tolist() == [2] * 5
    learned = frames["units"]["method"].unique().tolist()
    assert learned == [measured.WHOLE, measured.BLOCK_LOSS]
    assert {"before", "soft", "after"} <= set(frames["units"])
    assert frames["outcomes"]["name"].tolist() == ["learning", "layers", "units"]


def powers(**db: float) -> pd.DataFrame:
    names = {"ranges": measured.RANGES, "block": measured.BLOCK_LOSS, "whole": measured.WHOLE}
    return made_powers("method", names, db)


@pytest.mark.parametrize(
    ("whole", "told"),
    [
        (25.0, ["reproduces", "reproduces"]),
        (22.1, ["reproduces", "weaker here"]),
        (19.0, ["does not reproduce here"] * 2),
    ],
)
def test_claims_have_branches(whole: float, told: list[str]) -> None:
    found = measured.claims(powers(ranges=20.0, block=22.0, whole=whole))
    assert [claim.outcome for claim in found.values()] == told


@pytest.mark.parametrize(("after", "key"), [([0.5, 0.9], "all"), ([0.5, 1.2], "some")])
def test_units_that_end_above_nearest_rounding_are_told(after: list[float], key: str) -> None:
    units = pd.DataFrame(
        {"method": measured.WHOLE, "before": 1.0, "soft": [0.4, 0.6], "after": after}
    )
    row = measured.fits(units).iloc[0]
    assert row["change"] == pytest.approx(sum(after) / 2)
    assert row["hardening"] == pytest.approx((after[0] / 0.4 + after[1] / 0.6) / 2)
    assert measured.fit_verdict(units).key == key


def test_the_shipped_outcomes_follow_from_the_shipped_numbers() -> None:
    frames = stored.load(measured.NAME).frames
    assert frames["ledger"]["method"].tolist() == list(measured.METHODS)
    kept, again = frames["outcomes"], measured.outcomes(frames)
    assert again["outcome"].tolist() == kept["outcome"].tolist()
    assert again["measured"].tolist() == pytest.approx(kept["measured"].tolist(), rel=1e-3)
