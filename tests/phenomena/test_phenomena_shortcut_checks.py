"""Q-Diffusion's other claims: windows judged by pictures, the chain, single units, neighbours."""

import pandas as pd
import pytest
from made_powers import made_powers

from dqlab.errors import UnknownNameError
from dqlab.models.families import Sampler
from dqlab.phenomena import shortcut_checks as measured
from dqlab.phenomena import shortcut_claims as claimed
from dqlab.phenomena import stored
from dqlab.phenomena.q_diffusion_text import EVEN, WINDOWS
from dqlab.show import bimodal_shortcuts as explore
from dqlab.show.q_diffusion_text import window_page
from dqlab.trajectory import record

ALL = (EVEN, *WINDOWS, *measured.ENDS)


@pytest.fixture(scope="module")
def plan() -> measured.Plan:
    return measured.Plan(
        trajectories=4,
        samples=4,
        steps=2,
        chain=2,
        held_out=2,
        pictures=2,
        sampler=Sampler(4),
    )


def test_sets_have_equally_many_states_of_their_steps(pipe, plan) -> None:
    states, _ = record(pipe, range(4), plan.sampler)
    found = measured.sets(states, plan)
    assert tuple(found) == ALL
    assert {len(part) for part in found.values()} == {4}
    steps = [sorted(set(part.step.tolist())) for part in found.values()]
    assert steps == [[0, 2], [0, 1], [1, 2], [2, 3], [0], [3]]
    assert all(len(part.seed.unique()) == 4 for part in found.values())


def test_everything_is_measured(pipe, plan) -> None:
    frames, tensors = measured.measure(pipe, plan)
    assert tensors == {}
    assert frames["live"]["error"].notna().all() and len(frames["live"]) == 3
    assert frames["chain"]["series"].unique().tolist() == ["W8", "W5", "W4"]
    assert frames["powers"]["source"].unique().tolist() == list(ALL)
    assert frames["pictures"].groupby("source").size().tolist() == [2] * 6
    table = measured.window_table(frames)
    assert table["ratio"][0] == 1
    assert bool((table["worst"] <= table["db"]).all())
    assert set(frames["outcomes"]["name"]) >= {"middle", "chain", "last tenth pictures"}
    lines = repr(window_page(frames)).splitlines()
    assert len(lines) == 1 + len(ALL) and lines[1].startswith(EVEN)


def test_a_ratio_is_to_the_even_set() -> None:
    powers = made_powers("source", {"even": EVEN, "first": WINDOWS[0]}, {"even": 30, "first": 20})
    table = measured.window_table({"powers": powers, "pictures": pictures(even=0.01, first=0.03)})
    assert table["ratio"].tolist() == pytest.approx([1, 3])
    assert table["db"].tolist() == pytest.approx([30, 20])


def pictures(**errors: float) -> pd.DataFrame:
    names = {"even": EVEN, "first": WINDOWS[0], "middle": WINDOWS[1], "last": WINDOWS[2],
             "start": measured.ENDS[0], "end": measured.ENDS[1]}  # fmt: skip
    rows = [(names[k], seed, e) for k, e in errors.items() for seed in range(4)]
    return pd.DataFrame(rows, columns=["source", "seed", "mse"])


def test_windows_are_held_against_evenly_spread_steps() -> None:
    found = measured.claims(
        {"pictures": pictures(even=1, first=1.2, middle=2, last=9, start=1, end=99)}
    )
    outcomes = {name: claim.outcome for name, claim in found.items()}
    assert outcomes["first steps pictures"] == "weaker here"
    assert outcomes["last tenth pictures"] == "reproduces"
    assert outcomes["first tenth pictures"] == "does not reproduce here"
    assert outcomes["middle"] == "does not reproduce here"
    assert "least: first steps" in found["middle"].says
    best = measured.claims(
        {"pictures": pictures(even=1, first=3, middle=2, last=9, start=1, end=1)}
    )
    assert best["middle"].outcome == "reproduces"


def test_units_are_read_from_measured_lines() -> None:
    found = measured.of_units(measured.lines())
    assert found["units"].unit == "%" and 0 <= found["units"].measured <= 100
    assert found["unit error"].low <= found["unit error"].measured <= found["unit error"].high
    line = next(r for r in measured.lines() if r.metric == "eps_sqnr_db")
    with pytest.raises(UnknownNameError, match="reconstruction"):
        measured.of_units([line])


def drift(shortcut: float) -> pd.DataFrame:
    reach = {"conv1": 1.0, "conv2": 2.0, "conv_shortcut": shortcut}
    rows = [
        (f"{block}.resnets.0.{layer}.input", step, top * (1 + step))
        for block in ("down_blocks.1", "up_blocks.0", "up_blocks.1")
        for layer, top in reach.items()
        for step in range(2)
    ]
    return pd.DataFrame(rows, columns=["site", "step", "absmax"])


@pytest.mark.parametrize(
    ("shortcut", "outcome"),
    [(40.0, "reproduces"), (6.0, "weaker here"), (2.0, "does not reproduce here")],
)
def test_shortcuts_are_held_against_their_neighbours(shortcut: float, outcome: str) -> None:
    table = claimed.beyond(drift(shortcut))
    assert table["layer"].tolist() == ["up 0 res 0", "up 1 res 0"]
    assert table["ratio"].tolist() == [shortcut / 2] * 2
    assert claimed.towers(drift(shortcut))["neighbours"].outcome == outcome
    assert f"{shortcut / 2:.1f} times" in explore.layers_chart(drift(shortcut)).sentence


def test_the_shipped_outcomes_follow_from_the_shipped_numbers() -> None:
    frames = stored.load(measured.NAME).frames
    kept, again = frames["outcomes"], measured.outcomes(frames)
    assert again["outcome"].tolist() == kept["outcome"].tolist()
    assert again["measured"].tolist() == pytest.approx(kept["measured"].tolist(), rel=1e-3)


def test_the_command_writes_results_with_their_origin(pipe, shipped, monkeypatch) -> None:
    pipe.save_pretrained(shipped / "models" / "pixel-unet")
    monkeypatch.setattr(measured, "measure", lambda pipe, say: ({}, {}))
    measured.main()
    assert stored.load(measured.NAME).provenance["command"] == measured.COMMAND
