"""Pictures and explorers of 1.1: every setting draws, and says what its numbers say."""

import re

import pandas as pd
import pytest
import torch

from dqlab.phenomena import calibration as cal
from dqlab.phenomena import calibration_strategy as measured
from dqlab.phenomena import stored
from dqlab.show import calibration_strategy as explore


@pytest.fixture(scope="module")
def results() -> stored.Stored:
    return stored.load(measured.NAME)


def test_every_source_is_drawn_with_its_own_numbers(results) -> None:
    explorer = explore.source_explorer(results)
    means = cal.per_step(results.frames["powers"]).groupby("source")["db"].mean()
    for setting in list(explorer.grid())[::2]:
        picture, words = explorer.frame(setting)
        assert f"{means[setting['source']]:.1f} dB averaged" in words
        assert picture.size[0] <= 960


def test_the_distribution_explorer_names_its_setting(results) -> None:
    explorer = explore.normal_explorer(results)
    told = {name: explorer.frame(explorer.presets[name])[1] for name in explorer.presets}
    assert len(set(told.values())) == 3
    assert told["the script's setting"].startswith("mu = 0.4, sigma = 0.4")


def test_the_rug_has_a_tooth_for_every_pick(results) -> None:
    picked = results.frames["picks"]
    traces = explore.rug(picked, "Who picks what.").plotly["data"]
    teeth = {t["name"]: sum(x is not None for x in t["y"]) // 2 for t in traces if "name" in t}
    assert teeth == picked["source"].value_counts().to_dict()


def test_pictures_say_what_the_frames_hold(results) -> None:
    counts = results.frames["eda"]["count"]
    assert f"takes {counts.max()} states" in explore.path(results).sentence
    top = measured.absmax_of(results.frames["drift"])
    least = float((top.amax(1) / top.amin(1)).min())
    found = re.search(
        r"R lies between ([\d.]+)", explore.decider_of(results.frames["drift"]).sentence
    )
    assert float(found[1]) == pytest.approx(least, rel=0.01)
    assert "ranges of step" in explore.matrix(results).sentence
    assert "uniform" in explore.pictures(results).sentence


def test_tables_have_a_row_for_every_fit_and_claim(results) -> None:
    block = results.frames["block"]
    words = repr(explore.block_table(block))
    assert words.count("\n") == 3 * block["block"].nunique() == 12
    mine = block.query("block == 'mid_block.resnets.0' and fit == 'nearest'").set_index("layer")
    numbers = [mine.loc["block", "fitted"], *mine["error"]]
    assert "middle res 0 | nearest | " + " | ".join(f"{x:.3f}" for x in numbers) in words
    claims = measured.claims(results.frames)
    assert repr(explore.claims_table(claims)).count("\n") == len(claims)


def test_every_metric_is_told_against_the_papers_choice() -> None:
    rows = [
        (name, step, 0.0, seed, 1.0, 10 ** (-db / 10), 8, 8)
        for name, db in {"mse": 30, "l1": 20, "mse, chained": 30.001}.items()
        for step in range(2)
        for seed in range(2)
    ]
    names = ["source", "step", "t", "seed", "signal", "noise", "weights", "activations"]
    lines = repr(explore.metrics_table(pd.DataFrame(rows, columns=names))).splitlines()
    assert lines[1:] == [
        "W8A8 | L2.4 error | 30.0 | +0.0",
        "W8A8 | L1 error | 20.0 | -10.0",
        "W8A8 | L2.4 error, chained | 30.0 | +0.0",
    ]


def test_the_fits_are_told_with_their_cost() -> None:
    units = pd.DataFrame(
        {"method": ["a", "a", "b"], "before": 1.0, "soft": 0.5, "after": [0.5, 1.5, 0.25]}
    )
    seconds = pd.DataFrame({"method": ["a", "b"], "processor": [7.4, 3.0]})
    lines = repr(explore.fits_table(units, seconds)).splitlines()
    assert lines[1:] == [
        "a | 1.00 × | 1 of 2 | 2.00 × | 7",
        "b | 0.25 × | 0 of 1 | 0.50 × | 3",
    ]


def test_the_question_knows_its_answers(results) -> None:
    for key in explore.RUIN[1]:
        assert explore.question(key).correct == key
    assert measured.ruins(results.frames["pictures"]).key in explore.RUIN[1]


def test_the_shipped_outcomes_follow_from_the_shipped_numbers(results) -> None:
    kept = results.frames["outcomes"].set_index("name")
    again = measured.outcomes(results.frames).set_index("name")
    assert again["outcome"].to_dict() == kept["outcome"].to_dict()
    torch.testing.assert_close(
        torch.tensor(again["measured"].tolist()),
        torch.tensor(kept["measured"].tolist()),
        rtol=1e-4,
        atol=1e-3,
    )
