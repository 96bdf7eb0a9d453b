"""PTQ4DM's direction tests: the code's pairing, fewer bits, another metric, and their branches."""

import pandas as pd
import pytest
import torch
from made_powers import made_powers

from dqlab.methods import recipe
from dqlab.phenomena import calibration as cal
from dqlab.phenomena import calibration_checks as measured
from dqlab.phenomena import calibration_strategy as strategy
from dqlab.phenomena import stored


@pytest.fixture(scope="module")
def plan(sampler) -> measured.Plan:
    bench = strategy.Plan(samples=8, held_out=2, sampler=sampler)
    return measured.Plan(bench, activations=(8, 4), metrics=((8, 8),))


def test_turned_round_a_draw_keeps_what_the_counter_from_the_noise_finds(pipe, plan) -> None:
    """Three steps: t = 0, 1, 2 at steps 2, 1, 0 keep the inputs of steps 1, 2 and the picture."""
    b = strategy.bench(pipe, plan.bench)
    drawn = b.states[b.states.seed == b.states.seed[0]]
    found = measured.turned(b, drawn)
    x = {int(k): drawn.x[drawn.step == k][0] for k in drawn.step}
    wanted = {2: x[1], 1: x[2], 0: b.images[0] * 2 - 1}
    for row, step in enumerate(drawn.step.tolist()):
        assert torch.equal(found.x[row], wanted[step])
    assert torch.equal(found.t, drawn.t)


def test_everything_is_measured(pipe, plan, monkeypatch) -> None:
    slow = {name: {"metric": "l1"} for name in ("cosine", "kl")}
    real = measured._options()
    monkeypatch.setattr(measured, "_options", lambda: real | slow)
    frames, tensors = measured.measure(pipe, plan)
    assert tensors == {}
    fewer = frames["fewer"].groupby(["source", "activations"]).ngroups
    assert fewer == 4 * len(plan.activations)
    assert frames["pairing"]["source"].unique().tolist() == ["ptq4dm", measured.TURNED]
    assert frames["metrics"]["source"].nunique() == 5
    assert set(frames["outcomes"]["name"]) >= {"fewer", "pairing", "against l1"}
    b = strategy.bench(pipe, plan.bench)
    drawn = cal.picks_of(pipe, recipe("ptq4dm", samples=8), plan.bench.sampler)
    assert measured._ranges(b, drawn)["uniform"].shape == b.reach.over(slice(None)).shape


def powers(**db: float) -> pd.DataFrame:
    names = {"noise": "pure noise", "turned": measured.TURNED, "chained": measured.CHAINED}
    return made_powers("source", names, db)


@pytest.mark.parametrize(("four", "key"), [(15.0, "holds"), (20.0, "flips")])
def test_fewer_bits_hold_or_flip(four: float, key: str) -> None:
    eight = powers(noise=20, uniform=30).assign(activations=8)
    fewer = powers(noise=four, uniform=16).assign(activations=4)
    assert measured.fewer_bits(pd.concat([eight, fewer])).key == key


@pytest.mark.parametrize(("turned", "key"), [(33.0, "hardly"), (30.0, "matters")])
def test_the_codes_pairing_costs_or_hardly_matters(turned: float, key: str) -> None:
    assert measured.pairing(powers(ptq4dm=33.0, turned=turned)).key == key


@pytest.mark.parametrize(
    ("l1", "outcome"),
    [(20, "reproduces"), (29.9, "weaker here"), (31, "does not reproduce here")],
)
def test_metrics_are_claims_and_chaining_is_told(l1: float, outcome: str) -> None:
    frame = powers(mse=30, l1=l1, cosine=20, kl=20, chained=30.1)
    found = measured.claims(frame.assign(weights=8, activations=8))
    assert found["against l1"].outcome == outcome
    assert len(found) == 3
    both = [frame.assign(weights=8, activations=8)]
    both.append(powers(mse=20, chained=25).assign(weights=4, activations=4))
    assert [v.key for v in measured.chaining(pd.concat(both))] == ["alike", "differs"]


def test_the_shipped_outcomes_follow_from_the_shipped_numbers() -> None:
    frames = stored.load(measured.NAME).frames
    kept, again = frames["outcomes"], measured.outcomes(frames)
    assert again["outcome"].tolist() == kept["outcome"].tolist()
    assert again["measured"].tolist() == pytest.approx(
        kept["measured"].tolist(), rel=1e-3, abs=1e-4
    )


def test_the_command_writes_results_with_their_origin(pipe, shipped, monkeypatch) -> None:
    pipe.save_pretrained(shipped / "models" / "pixel-unet")
    monkeypatch.setattr(measured, "measure", lambda pipe, say: ({}, {}))
    measured.main()
    assert stored.load(measured.NAME).provenance["command"] == measured.COMMAND
