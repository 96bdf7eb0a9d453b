"""Calibration strategy: what states pick, what their ranges miss, and the claims' branches."""

import pandas as pd
import pytest
import torch
from made_powers import made_powers

from dqlab.errors import InvalidInputError
from dqlab.fit.profiles import Settings
from dqlab.phenomena import calibration as cal
from dqlab.phenomena import calibration_strategy as measured
from dqlab.phenomena import stored
from dqlab.phenomena.drift import activation_sites, range_table, static_ranges, watchable
from dqlab.reference.eda_dm import score
from dqlab.reference.ptq4dm import time_steps

PLAN = {
    "trajectories": 24, "samples": 24, "held_out": 2, "crossed": 1, "pictures": 2, "kept": 1,
    "compared": 2, "means": (0.0, 1.0), "spreads": (0.0,), "iterations": 2,
    "blocks": ("mid_block.resnets.0",),
}  # fmt: skip


@pytest.fixture(scope="module")
def plan(sampler) -> measured.Plan:
    return measured.Plan(**PLAN, sampler=sampler)


@pytest.fixture(scope="module")
def bench(pipe, plan) -> measured.Bench:
    return measured.bench(pipe, plan)


def test_reach_is_what_range_tables_say(pipe, run) -> None:
    states = run[0]
    watched = watchable(pipe, states)
    sites = activation_sites(watched)
    seen = cal.reach(watched, states, sites)
    table = range_table(watched, states, sites)
    pd.testing.assert_frame_equal(
        seen.over(states.step >= 0), static_ranges(table).loc[sites], check_exact=False, rtol=1e-4
    )
    one = table[table["step"] == 1].set_index("site").loc[sites]
    found = seen.over(states.step == 1)
    assert found["high"].tolist() == pytest.approx(one["high"].tolist(), rel=1e-4)
    reach = torch.tensor(one[["low", "high"]].abs().max(axis=1).to_numpy())
    torch.testing.assert_close(
        seen.absmax(states.step)[:, 1].double(), reach, rtol=1e-4, atol=1e-6
    )
    with pytest.raises(InvalidInputError, match="No state"):
        seen.over(states.step > 99)


def test_the_worst_clip_looks_at_every_layer_by_itself() -> None:
    reach = torch.tensor([[100.0, 50.0, 90.0], [1.0, 0.1, 4.0]])
    assert cal.worst_clip(reach, [0, 1, 2]) == 1
    assert cal.worst_clip(reach, [0]) == 4
    assert cal.worst_clip(reach, [1]) == pytest.approx(40)
    assert cal.worst_clip(reach, [1, 0]) <= cal.worst_clip(reach, [1])


def test_methods_pick_for_themselves(bench, plan) -> None:
    """A method whose key step became uniform picks other counts than these."""
    found = measured.sets(bench)
    assert tuple(found) == measured.SOURCES
    T = 3
    picked = cal.picked_frame(found)
    t = time_steps(plan.samples, T, generator=torch.Generator().manual_seed(0))
    wanted = t.bincount(minlength=T).flip(0).tolist()
    assert cal.counts(picked, "ptq4dm", T) == wanted != [8, 8, 8]
    assert sum(cal.counts(picked, "eda-dm", T)) == plan.samples
    assert cal.counts(picked, "uniform", T) == [8, 8, 8]
    assert cal.counts(picked, "pure noise", T) == [24, 0, 0]
    assert found["clean images"].x.min() >= -1
    torch.testing.assert_close(found["clean images"].x, bench.images * 2 - 1)


def test_rows_come_from_the_steps_asked_for(bench) -> None:
    rows = measured.rows_at(bench.states, [3, 0, 99], torch.Generator().manual_seed(0))
    assert bench.states.step[rows].bincount().tolist() == [3, 0, 24]
    assert len(rows.unique()) == len(rows)


def test_ranges_of_all_steps_are_never_narrower_than_those_of_one(bench) -> None:
    every, one = (
        bench.reach.over(rows) for rows in (bench.states.step >= 0, bench.states.step == 0)
    )
    assert bool((every["high"] >= one["high"]).all())
    table = measured.cross(bench, bench.states[bench.states.seed < bench.states.seed[2]], [0, 2])
    assert table["ranges_from"].tolist() == [0] * 3 + [2] * 3


def test_a_path_keeps_what_lies_on_two_directions(bench) -> None:
    F = torch.zeros(3, 2, 4)
    F[:, 0, 0], F[:, 1, 1] = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 1.0, -4.0])
    path = cal.principal_path(F, bench.states)
    place = torch.tensor(path[["x", "y"]].to_numpy())
    torch.testing.assert_close(
        torch.cdist(place, place), torch.cdist(F.flatten(0, 1), F.flatten(0, 1)).double(),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    assert path["step"].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_block_is_told_by_its_output_and_its_inner_layers(pipe, run) -> None:
    watched = watchable(pipe, run[0])
    settings = {"learned": Settings(2, 2, rounding_lr=0.1)}
    found = cal.block_errors(watched, run[0], run[0], "mid_block.resnets.0", 3, settings)
    assert found["fit"].unique().tolist() == ["nearest", "learned"]
    assert set(found["layer"]) == {"block", "conv1", "time_emb_proj"}
    assert (found["error"] > 0).all()


def test_finer_states_change_less(pipe, run) -> None:
    """Each bit is worth 6 dB where rounding errors only add up."""
    coarse, fine = (cal.rounded_states_db(pipe, run[0], bits) for bits in (8, 14))
    assert (fine - coarse).tolist() == pytest.approx([36, 36], abs=4)
    exact, last = (cal.rounded_states_db(pipe, run[0], 8, steps) for steps in ((), (2,)))
    assert exact.tolist() == [float("inf")] * 2
    assert bool((last > coarse).all())


def powers(**db: float) -> pd.DataFrame:
    names = {"noise": "pure noise", "clean": "clean images", "eda": "eda-dm"}
    return made_powers("source", names, db)


def block(plain: float, fine: float, fitted: float = 0.05) -> pd.DataFrame:
    rows = [
        (path, fit, layer, error, fitted)
        for path in ("a", "b")
        for fit, error in (("nearest", 1.0), ("block loss", plain), ("with layer losses", fine))
        for layer in ("block", "conv1", "time_emb_proj")
    ]
    return pd.DataFrame(rows, columns=["block", "fit", "layer", "error", "fitted"])


def rounded(all_: float, noisy: float, clean: float) -> pd.DataFrame:
    db = {"all steps": all_, "noisy half": noisy, "clean half": clean}
    return pd.DataFrame({"when": list(db), "bits": 8, "db": list(db.values())})


@pytest.mark.parametrize(
    ("ptq4dm", "eda", "plain", "told"),
    [
        (31.0, 31.0, 4.0, ["reproduces"] * 5),
        (25.0, 30.2, 0.9, ["reproduces"] * 2 + ["does not reproduce here", "weaker here"]),
    ],
)
def test_claims_have_branches(ptq4dm, eda, plain, told) -> None:
    frames = told_by(
        powers=powers(noise=20, clean=5, uniform=30, ptq4dm=ptq4dm, eda=eda),
        block=block(plain, 0.1),
    )
    found = measured.claims(frames)
    names = ("single", "clean", "normal", "density", "states")
    assert [found[name].outcome for name in names][: len(told)] == told
    assert (found["harm"].outcome == "reproduces") == (plain > 1)
    assert found["block"].outcome == "reproduces"


def told_by(**frames: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Frames that say yes to every claim, some of them replaced."""
    made = {"pure noise": 4.0, "first steps": 2.0, "clean images": 9.0}
    errors = made | dict.fromkeys(("uniform", "ptq4dm", "eda-dm"), 1.0)
    rows = [(name, seed, error) for name, error in errors.items() for seed in range(4)]
    yes = {
        "powers": powers(noise=20, clean=5, uniform=30, ptq4dm=31, eda=31),
        "matrix": pd.DataFrame({"ranges_from": [0, 1, 2], "db": [20.0, 25.0, 28.0]}),
        "pictures": pd.DataFrame(rows, columns=["source", "seed", "mse"]),
        "eda": pd.DataFrame({"density": [1, 3, 3, 0], "variety": [9.0, 1.0, 1.5, 8.0]}),
        "rounded": rounded(40, 41, 42),
        "block": block(4.0, 0.1),
    }
    return yes | frames


def test_all_claims_can_hold() -> None:
    found = measured.claims(told_by())
    assert {name: claim.outcome for name, claim in found.items()} == dict.fromkeys(
        found, "reproduces"
    )


@pytest.mark.parametrize(
    ("frame", "claim"),
    [
        ({"matrix": pd.DataFrame({"ranges_from": [0, 1], "db": [30.0, 20.0]})}, "nearer"),
        ({"matrix": pd.DataFrame({"ranges_from": [0, 1], "db": [20.0, 32.0]})}, "ptq4dm alone"),
        ({"eda": pd.DataFrame({"density": [3, 1, 1, 3], "variety": [9.0, 1, 1, 8]})}, "crowd"),
        ({"eda": pd.DataFrame({"density": [1, 3, 3, 0], "variety": [1.0, 9, 9, 1]})}, "ends"),
        ({"block": block(4.0, 1.5)}, "block"),
        ({"block": block(0.2, 0.3)}, "block closer"),
        ({"block": block(0.2, 0.1)}, "lost"),
        ({"block": block(4.0, 0.1, fitted=4.0)}, "overfit"),
        ({"rounded": rounded(19, 20, 40)}, "states"),
    ],
)
def test_each_claim_can_fail(frame: dict, claim: str) -> None:
    assert measured.claims(told_by(**frame))[claim].outcome == "does not reproduce here"


def test_pictures_are_held_against_the_best_source_of_one_kind() -> None:
    """First steps err twice as much as either method; the others more."""
    found = measured.claims(told_by())["eda-dm pictures"]
    assert found.measured == found.low == found.high == 2
    assert "first steps" in found.says


@pytest.mark.parametrize(
    ("noisy", "clean", "key"), [(20, 40, "noisy"), (40, 20, "clean"), (30, 30.5, "both")]
)
def test_the_half_that_tolerates_less_is_told(noisy: float, clean: float, key: str) -> None:
    assert measured.halves(rounded(19, noisy, clean)).key == key


def test_steps_that_earn_more_get_more() -> None:
    """The upper quarter of EDA-DM's shipped scores has more samples than the lower."""
    eda = stored.load(measured.NAME).frames["eda"]
    S = score(*(torch.tensor(eda[name].to_numpy()) for name in ("density", "variety")), 1.2)
    order, quarter = S.argsort().tolist(), len(eda) // 4
    low, high = eda["count"].iloc[order[:quarter]], eda["count"].iloc[order[-quarter:]]
    assert high.min() > low.max()


@pytest.mark.parametrize(
    ("errors", "key"),
    [
        ((0.03, 0.02, 4.0), "clean images"), ((3.0, 0.02, 0.1), "pure noise"),
        ((0.03, 0.9, 0.1), "first steps"), ((0.002, 0.002, 0.001), "none"),
    ],
)  # fmt: skip
def test_the_question_has_four_answers(errors, key: str) -> None:
    names = ["pure noise", "first steps", "clean images", "uniform"]
    frame = pd.DataFrame({"source": names, "mse": [*errors, 0.001]})
    assert measured.ruins(frame).key == key


@pytest.mark.parametrize(("tops", "key"), [((1.0, 5.0), "holds"), ((1.0, 1.05), "weaker")])
def test_drift_is_judged_by_its_median_and_its_tail(tops, key: str) -> None:
    rows = [(f"s{i}", "up", step, top) for i in range(4) for step, top in enumerate(tops)]
    frame = pd.DataFrame(rows, columns=["site", "branch", "step", "absmax"])
    assert measured.drifts(frame).key == key


def test_everything_is_measured(pipe, plan, shipped) -> None:
    frames, tensors = measured.measure(pipe, plan)
    assert set(frames) >= {"picks", "matrix", "normal", "eda", "path", "block"}
    assert tensors["made"].shape == (6, 1, 3, 8, 8)
    assert len(frames["matrix"]) == 9
    assert frames["block"]["block"].unique().tolist() == list(plan.blocks)
    assert measured.halves(frames["rounded"]).words
    assert frames["eda"]["count"].sum() == plan.samples
    assert set(frames["outcomes"]["name"]) >= {"single", "nearer", "ends", "cure", "ruins"}


def test_the_command_writes_results_with_their_origin(pipe, shipped, monkeypatch) -> None:
    pipe.save_pretrained(shipped / "models" / "pixel-unet")
    monkeypatch.setattr(measured, "measure", lambda pipe, say: ({}, {"x": torch.ones(1)}))
    measured.main()
    assert stored.load(measured.NAME).provenance["command"] == measured.COMMAND
