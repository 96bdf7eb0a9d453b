"""What 1.4 measures, on a pipeline with random weights, and its sentences for every outcome."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from dqlab.methods.unet_time_information import qvd
from dqlab.phenomena import clock
from dqlab.phenomena import time_information as measured
from dqlab.phenomena.ledger import OUTCOMES
from dqlab.trajectory import record


@pytest.fixture(scope="module")
def states(pipe, sampler):
    return record(pipe, [0, 1], {"num_inference_steps": 20})[0]


@pytest.fixture(scope="module")
def full(pipe, states):
    return clock.clock(pipe, states)


@pytest.fixture(scope="module")
def rounded(pipe, states, full):
    return full.of(clock.only_clock(pipe, states, 2, None, temporal="nearest"))


def test_an_exact_clock_is_read_right(full) -> None:
    table = clock.perceived_table(full, full.features)
    assert clock.mistaken(table) == 0
    assert set(table["layer"]) == set(full.path.blocks)
    assert clock.cosine_table(full, full.features)["away"].abs().max() < 1e-6
    assert (clock.separation(full, full.features)["ratio"] == 0).all()


def test_a_shifted_clock_is_found_and_its_decider_is_one(full) -> None:
    shifted = [E.roll(1, 0) for E in full.features]
    table = clock.perceived_table(full, shifted)
    assert table["perceived"].tolist() == full.t.roll(1).tolist() * len(full.features)
    assert clock.mistaken(table) == 1
    assert (clock.separation(full, shifted)["ratio"] >= 1).all()


def test_a_clock_may_be_read_among_more_steps(pipe, states, full, rounded) -> None:
    always = clock.clock(pipe, states, 1000)
    table = clock.perceived_table(full, rounded, always)
    assert table["t"].nunique() == 20 and clock.mistaken(table) >= clock.mistaken(
        clock.perceived_table(full, rounded)
    )
    exact = clock.perceived_table(full, full.features, always)
    assert clock.mistaken(exact) == 0


def test_only_the_clock_is_quantized(pipe, states, full) -> None:
    import dqlab

    q = clock.only_clock(pipe, states, 4, 8, temporal="nearest")
    sites = dqlab.describe(q)["formats"]
    assert {site.rsplit(".", 1)[0] for site in sites} == set(full.path.layers)


def test_ranges_and_what_they_gain(pipe, states, full) -> None:
    table = clock.range_table(full)
    u = table[table["layer"] == "u"]
    assert u["low"].tolist() == pytest.approx(full.inputs.amin(1).tolist(), rel=1e-5)
    gains = clock.step_gains(pipe, states, full, (8,))
    assert len(gains) == 20 * len(full.features) and gains["gain"].notna().all()


def test_grids_by_bits(full) -> None:
    table = clock.grid_table(full.inputs, (4, 8))
    rows = table.set_index("grid")
    assert {"uint4", "log2-4-signed", "logtau-4-6", "uint4, by step", "uint8"} <= set(rows.index)
    assert rows.loc["uint8", "db"] > rows.loc["uint4", "db"]
    assert rows.loc["uint8, by step", "db"] >= rows.loc["uint8", "db"]


def test_channels_before_and_after(pipe, states) -> None:
    found = clock.channels(pipe, states, states, rows=2, every=9)
    assert not any("time_emb_proj" in p for p in found.ranges)
    assert found.coverage()["kappa"].between(0, 1).all()
    assert found.coverage(1.0)["kappa"].to_numpy() == pytest.approx(1.0, abs=1e-5)
    few = replace(found, inputs=dict(list(found.inputs.items())[:2]))
    outputs = few.outputs(8, 4, search=True)
    gains = clock.alpha_gains(outputs).set_index("alpha")
    assert len(outputs) == 2 * 8 and gains.loc["none", "gain"] == 0
    assert gains.loc["hindsight", "db"] >= gains["db"].max() - 1e-9


def test_what_clipping_alone_costs(pipe, states) -> None:
    """Nothing where ranges come from; beyond it the tensor's range clips less than channels'."""
    found = clock.channels(pipe, states, states, rows=2, every=9)
    assert (found.headroom()["db"] == 120).all()
    louder = replace(found, inputs={path: 1.5 * x for path, x in found.inputs.items()})
    wide = louder.headroom().pivot(index="layer", columns="reach", values="db")
    assert (wide["channel"] <= wide["tensor"] + 1).all() and (wide["channel"] < 60).any()


def test_samples_that_turn_are_found_step_by_step(states) -> None:
    """One sample's sign is flipped at the last step: 1 - cos is 2 there, 1 in the mean of two."""
    x = states.x.clone()
    last = (states.step == states.step.max()) & (states.branch == 0) & (states.seed == 1)
    x[last] = -x[last]
    found = clock.trajectory_table(states, {"same": states, "flipped": replace(states, x=x)})
    assert set(found["step"]) == set(range(1, 20))
    by = found.pivot(index="step", columns="series", values="away")
    assert by["same"].abs().max() < 1e-12 and by["flipped"].iloc[:-1].abs().max() < 1e-12
    assert by["flipped"].iloc[-1] == pytest.approx(1.0)


def perceived(wrong: int, blocks: int = 3, steps: int = 20) -> pd.DataFrame:
    t = [float(i) for i in range(steps)]
    shown = [v + (i < wrong) * 0.5 for i, v in enumerate(t)]
    parts = [pd.DataFrame({"layer": f"b{b}", "t": t, "perceived": shown}) for b in range(blocks)]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(("wrong", "key"), [(0, "none"), (3, "few"), (12, "more")])
def test_the_answer_to_the_question_is_counted(wrong, key) -> None:
    found = measured.steps_mistaken(perceived(wrong), 4)
    assert found.key == key and f"mistakes {wrong} of 20 steps" in found.words


def test_the_most_mistaken_block() -> None:
    table = perceived(2)
    table.loc[table["layer"] == "b1", "perceived"] = -1.0
    assert measured.most_mistaken(table) == "b1"


@pytest.mark.parametrize(
    ("u", "key"),
    [
        (torch.linspace(-1, 1, 100), "absent"),
        (torch.exp2(torch.linspace(0, 6, 100)), "weaker"),
        (torch.exp2(torch.linspace(0, 16, 100)), "holds"),
    ],
)
def test_skewness_in_words(u, key) -> None:
    assert measured.skewed(u[None]).key == key


@pytest.mark.parametrize(
    ("scores", "key"), [((0.9, 0.8), "some"), ((0.1, 0.8), "never"), ((0.9, 0.99), "always")]
)
def test_where_log_grids_win(scores, key) -> None:
    rows = []
    for bits, score in zip((4, 8), scores, strict=True):
        rows += [(bits, f"uint{bits}", 0.85), (bits, f"log2-{bits}-signed", score)]
        rows += [(bits, f"uint{bits}, by step", 1.0)]
    table = pd.DataFrame(rows, columns=["bits", "grid", "td_score"])
    assert measured.log_grids(table).key == key


def test_everything_stored_and_every_claim(pipe, states, full, rounded, shipped) -> None:
    from dqlab.models.families import Sampler

    plan = measured.Plan(1, 2, 2, 1, ((4, 8),), Sampler(20))
    few = dict(list(measured.ARMS.items())[:2]) | {
        "tfmq-dm": ("tfmq-dm", {"reconstruct": False, "temporal": "nearest", "scope": "all"}),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured, "ARMS", few)
        frames, tensors = measured.measure(pipe, replace(plan))
    assert frames["ledger"]["method"].tolist() == list(few)
    assert tensors["made"].shape[:3] == (1, 3, 1)
    found = measured.claims(
        {"nearest": clock.cosine_table(full, rounded), "tiar": turned(full, 0.0)},
        {"nearest": clock.perceived_table(full, rounded), "tiar": perceived(0)},
        (1.0, 0.25),
        clock.step_gains(pipe, states, full, (8,)),
        (1e-5, 1e-5),
        frames["powers"],
    )
    assert {c.outcome for c in found.values()} <= set(OUTCOMES)
    assert {found[n].outcome for n in ("tiar", "blocks", "cache")} == {OUTCOMES[0]}


def turned(full, away: float) -> pd.DataFrame:
    return clock.cosine_table(full, full.features).assign(away=away)


def test_turns_by_step() -> None:
    """One block of two varies threefold; the last third turns twice as far as the first."""
    rows = [("a", 1, 1, 4), ("b", 1, 1, 1)]
    table = pd.DataFrame(
        [(layer, step, away) for layer, *row in rows for step, away in enumerate(row)],
        columns=["layer", "step", "away"],
    )
    varied, late = clock.turn_facts(table)
    assert (varied, late) == (0.5, pytest.approx(2.5))


def test_made_up_features_favour_log_grids(full, pipe, states) -> None:
    """Distinct codes are known: log2 leaves every channel 3 of 16 steps."""
    u = clock.skewed_features()
    table = clock.grid_table(u, (4, 6))
    assert table.set_index("grid").loc["log2-4-signed", "codes"] == pytest.approx(2 / 15)
    equal = pd.DataFrame({"layer": ["a"], "kappa": [1.0]})
    found = measured.grid_claims(u, table, table, equal)
    assert found["made up"].outcome == found["equal"].outcome == OUTCOMES[0]
    assert found["choice"].outcome == OUTCOMES[0] and found["choice"].measured > 0.1
    with pytest.MonkeyPatch.context() as patch:
        worst = lambda u, grids: (min(grids, key=lambda g: qvd.grid_score(u, g)), {})  # noqa: E731
        patch.setattr(measured, "best_grid", worst)
        again = measured.grid_claims(u, table, table, equal)
    assert again["choice"].outcome == OUTCOMES[2] or again["choice"].measured == 0


def test_rounding_to_8_bits_hardly_turns_a_feature(full) -> None:
    assert 0 < clock.rounded_turn(full) < clock.rounded_turn(full, 4) < 0.1


def test_a_grid_by_step_covers_each_step_alone() -> None:
    """Step k is 2^k wide: on its own 4 bits it is off by at most half of a 15th of its range."""
    u = torch.linspace(-1, 1, 33) * 2.0 ** torch.arange(4)[:, None]
    error = (clock.grids(u, 4)["uint4, by step"] - u).abs().amax(1)
    half = 2.0 ** torch.arange(4) / 15
    assert (error <= half * 1.001).all()
