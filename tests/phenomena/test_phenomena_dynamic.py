"""Ranges over the steps, what one step size costs, and the stored measurement in small."""

import math

import pandas as pd
import pytest
import torch

from dqlab.errors import InvalidInputError
from dqlab.methods.unet_dynamic.tdq import Grid
from dqlab.phenomena import dynamic_quantization as measured
from dqlab.phenomena import stored
from dqlab.phenomena import timed_ranges as tr
from dqlab.phenomena import timed_verdicts as tv
from dqlab.phenomena.ledger import OUTCOMES

CLEAN = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.fixture(scope="module")
def seen(pipe, run) -> tr.Timed:
    return tr.watch(pipe, run[0], keep=16)


def test_what_passes_a_site_is_seen_step_by_step(pipe, run, seen) -> None:
    states = run[0]
    site = "mid_block.resnets.0.conv1.input"
    passed = []
    handle = pipe.unet.mid_block.resnets[0].conv1.register_forward_pre_hook(
        lambda _, args: passed.append(args[0].detach())
    )
    with torch.no_grad():
        states.call(pipe.unet)
    handle.remove()
    mine = seen.of([site])
    assert mine.grids == (Grid(4, silu=True),)
    assert mine.t.tolist() == states.t[states.seed == 0].tolist()
    for k in range(3):
        for n in range(2):
            row = passed[0][(states.step == k) & (states.seed == n)]
            assert float(mine.high[0, k, n]) == pytest.approx(float(row.max()), rel=1e-4)
            assert float(mine.low[0, k, n]) == pytest.approx(float(row.min()), rel=1e-4)
            near = (mine.values[0, k, n][:, None] - row.flatten()).abs().amin(1)
            assert near.max() < 1e-4


def test_time_layers_are_left_out_and_unknown_sites_refused(seen) -> None:
    assert not any("time" in s or s.startswith("conv_") for s in seen.sites)
    assert any(s.endswith("attentions.0.q") for s in seen.sites)
    with pytest.raises(InvalidInputError, match="nowhere was not watched"):
        seen.of(["nowhere"])
    with pytest.raises(InvalidInputError, match="scheme='best'"):
        tr.step_sizes(seen, "best")


def test_drift_between_and_within_are_what_they_say() -> None:
    low, high = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 1.2], [2.0, 2.2], [4.0, 4.2]]])
    timed = tr.Timed(("a.b.input",), (Grid(4),), torch.tensor([9.0, 5.0, 1.0]),
                     torch.zeros(1, 3, 2, 1), low, high)  # fmt: skip
    row = tr.time_table(timed).iloc[0]
    assert row["R"] == pytest.approx(4.2 / 1.2)
    assert row["within"] == pytest.approx(0.01) and row["between"] > 1
    assert row["r"] < -0.9


def test_a_table_is_never_worse_than_a_static_step_nor_that_than_min_max() -> None:
    for ratio in (1.0, 3.0, 8.0):
        timed = tr.gaussian(ratio)
        total = {k: float(tr.errors(timed, tr.step_sizes(timed, k)).sum()) for k in tr.SCHEMES[:3]}
        assert total["table"] <= total["static"] <= total["min-max"]


def test_the_made_up_site_gains_what_the_integral_says() -> None:
    """20 Gaussian steps, deviation 1 to 8 geometric, 4 bits: 3.5 dB; none at 1."""
    found = tr.gaussian_gains([1.0, 8.0]).set_index("ratio")["gain"]
    assert found[1.0] == pytest.approx(0, abs=0.05)
    assert found[8.0] == pytest.approx(3.5, abs=0.2)


def test_networks_follow_the_made_up_table() -> None:
    timed = tr.gaussian(4.0, count=1024)
    best = tr.step_sizes(timed, "table")
    mine = tr.step_sizes(timed, "network", (200, 0))
    assert float(tr.site_db(timed, mine)[0]) >= float(tr.site_db(timed, best)[0]) - 0.2


def test_clipping_and_rounding_add_up() -> None:
    timed = tr.gaussian(8.0)
    s = tr.step_sizes(timed, "static")
    parts = tr.clip_and_round(timed, s)
    power = timed.values.square().flatten(2).mean(2)[0]
    whole = (tr.errors(timed, s)[0] / power).tolist()
    assert (parts["clipping"] + parts["rounding"]).tolist() == pytest.approx(whole, rel=1e-3)
    assert parts["clipped"].iloc[0] == 0 and parts["clipped"].iloc[-1] > 0
    assert parts["rounding"].iloc[0] > parts["rounding"].iloc[-1]


def test_run_time_steps_clip_nothing(seen) -> None:
    s = tr.run_time_steps(seen)
    assert s.shape == seen.high.shape
    for i, grid in enumerate(seen.grids):
        top = tr.levels_of(grid, s[i])[..., -1]
        assert (top >= seen.high[i] - 1e-4).all()


def test_ablations_name_every_shape() -> None:
    table = tr.ablations(tr.gaussian(4.0, count=256), updates=60).set_index("shape")
    assert list(table.index) == list(tr.ABLATIONS)
    assert (table["error"] > 0).all() and table["held_out_db"].notna().all()
    assert table["error"]["4 layers"] < table["error"]["raw t"]


def test_the_cost_of_run_time_ranges_counts_every_value(pipe, run) -> None:
    table = tr.cost_table(pipe, run[0]).set_index("site")
    assert table["values"]["conv_in.input"] == 3 * 8 * 8
    assert table["operations"]["conv_in.input"] == 8 * 8 * 8 * 27
    assert table["operations"]["mid_block.attentions.0.q"] == 0
    assert table["rows"]["conv_in.input"] == table["rows"]["mid_block.attentions.0.q"] == 0
    assert table["rows"]["time_embedding.linear_1.input"] == 1
    pixels = table["values"]["mid_block.attentions.0.to_q.input"] / 16
    assert table["rows"]["mid_block.attentions.0.to_q.input"] == pixels


@pytest.fixture(scope="module")
def results(pipe, sampler) -> tuple[dict, dict]:
    plan = measured.Plan(
        calibration=2, held_out=2, pictures=2, kept=1, bits=((4, 4),), warm=2, updates=2,
        training=1, batch=2, judged=2, data=CLEAN, sampler=sampler,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dqlab.methods.step_networks.VALUES", 32)
        patch.setattr(
            tr,
            "ABLATIONS",
            {k: tr.ABLATIONS[k] for k in ("4 layers", "2 layers", "1 layer", "raw t")},
        )
        patch.setattr(measured, "ledger_row", lambda powers, exact, made, q, states: {"db": 1.0})
        return measured.measure(pipe, plan)


def test_the_measurement_holds_every_setting(results) -> None:
    frames, tensors = results
    named = frames["powers"].groupby(["weights", "activations"])["setting"].unique()
    assert set(named[4, 4]) == {*measured.SETTINGS, *measured.TRAINED}
    assert set(named[8, 4]) == set(measured.Plan().some)
    assert tensors["made"].shape == (1, len(measured.SETTINGS), 1, 3, 8, 8)
    assert tensors["trained"].shape == (2, 1, 3, 8, 8)
    assert tensors["table"].shape == tensors["static"].shape == (len(frames["sites"]), 3)
    assert (tensors["static"] == tensors["static"][:, :1]).all()
    assert set(frames["losses"]["setting"]) == {"before", *measured.TRAINED}
    assert {"question", "training", "decider"} <= set(frames["outcomes"]["name"])


def test_curves_are_per_step(results) -> None:
    curve = tv.over_steps(results[0]["powers"], {"min-max": "rtn", "network": "method"}, 8, 4)
    assert set(curve["series"]) == {"rtn", "method"} and len(curve) == 6


def gains(**columns) -> pd.DataFrame:
    base = {"site": ["a", "b", "c"], "R": [1.2, 1.6, 3.0], "r": [0.9, -0.8, 0.1],
            "between": [1.0, 1.0, 0.1], "within": [0.5, 0.5, 0.5], "min-max": 15.0,
            "static": 18.0, "table": 18.5, "network": 18.4, "run time": 16.0}  # fmt: skip
    return pd.DataFrame(base | columns)


@pytest.mark.parametrize(("table", "key"), [(18.5, "little"), (21.0, "some"), (25.0, "much")])
def test_the_question_has_an_answer_for_every_gain(table: float, key: str) -> None:
    told = tv.table_gain(gains(table=table))
    assert told.key == key and "with R > 2" in told.words
    assert "R > 2" not in tv.table_gain(gains(R=[1.0, 1.1, 1.2])).words


@pytest.mark.parametrize(
    ("columns", "key"),
    [({}, "holds"), ({"R": [1.0, 1.1, 1.2]}, "weaker"), ({"r": [0.0, 0.1, 0.2]}, "absent")],
)
def test_the_phenomenon_is_judged(columns: dict, key: str) -> None:
    assert tv.drifts(gains(**columns)).key == key


@pytest.mark.parametrize(
    ("encoding", "raw", "key"),
    [((0.0, 0.1), (0.1, 0.2), "encoding"), ((0.0, 0.3), (0.1, 0.2), "trade"),
     ((0.2, 0.3), (0.1, 0.2), "raw")],
)  # fmt: skip
def test_the_encoding_is_judged_at_and_between_steps(encoding, raw, key: str) -> None:
    rows = [("4 layers", 0.0, *encoding), ("raw t", 0.1, *raw)]
    table = pd.DataFrame(rows, columns=["shape", "error", "seen_db", "held_out_db"])
    assert tv.shapes(table).key == key


@pytest.mark.parametrize(
    ("eight", "four", "key"),
    [((20, 20.1), (14, 18), "few bits"), ((20, 22), (14, 18), "always"),
     ((20, 20.1), (14, 14.2), "never")],
)  # fmt: skip
def test_the_room_for_choice_is_told(eight, four, key: str) -> None:
    rows = [("a", 4, 8, eight[0]), ("b", 4, 8, eight[1]), ("a", 4, 4, four[0]),
            ("b", 4, 4, four[1]), ("trained, static", 4, 4, 30)]  # fmt: skip
    ledger = pd.DataFrame(rows, columns=["setting", "weights", "activations", "db"])
    assert tv.room(ledger).key == key


@pytest.mark.parametrize(
    ("kept", "second", "key"),
    [(0.25, (1, 2), "lost"), (0.9, (1.5, 3), "equal"), (0.9, (2.5, 3), "apart")],
)
def test_whether_pictures_rank_scales_is_told(kept, second, key: str) -> None:
    rows = [("a", 1, 2, kept), ("b", *second, 0.1), ("trained, static", 8, 9, 0.1)]
    ledger = pd.DataFrame(rows, columns=["setting", "mse_low", "mse_high", "garment"])
    found = tv.pictures(ledger.assign(weights=4, activations=8, pictures=32))
    assert found.key == key and f"at most {100 * kept:.0f} % of 32 pictures" in found.words


def losses(tdq: float, spread: float = 0.001) -> pd.DataFrame:
    rows = [
        (name, i, value + spread * (i % 2 if name.endswith("network") else 0))
        for name, value in (("before", 0.2), ("trained, static", 0.1), ("trained, network", tdq))
        for i in range(8)
    ]
    return pd.DataFrame(rows, columns=["setting", "sample", "loss"])


@pytest.mark.parametrize(
    ("tdq", "spread", "key", "outcome"),
    [
        (0.09, 0.001, "lower", OUTCOMES[0]),
        (0.12, 0.001, "higher", OUTCOMES[2]),
        (0.09, 0.02, "equal", OUTCOMES[2]),
    ],
)
def test_training_is_judged_by_its_interval(tdq, spread, key: str, outcome: str) -> None:
    assert tv.trained_verdict(losses(tdq, spread)).key == key
    assert tv._training_claim(losses(tdq, spread)).outcome == outcome


def test_every_claim_states_its_margin(results) -> None:
    for claim in tv.claims(results[0]).values():
        assert claim.outcome in OUTCOMES and claim.full >= claim.least
        assert math.isfinite(claim.measured)


def test_a_table_is_all_that_inference_needs(pipe, run, sampler) -> None:
    states, plan = run[0], measured.Plan(warm=2, updates=2, sampler=sampler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dqlab.methods.step_networks.VALUES", 32)
        whole = measured.setting(pipe, "network", 4, 4, states, plan)
    made = measured.setting(pipe, "min-max", 4, 4, states, plan)
    measured.with_steps(made, measured.exported(whole))
    with torch.no_grad():
        assert torch.equal(states.call(made.unet), states.call(whole.unet))


def test_the_shipped_outcomes_follow_from_the_shipped_numbers() -> None:
    """A stored verdict that the stored numbers no longer give is wrong in one of the two."""
    results = stored.load(measured.NAME)
    kept = results.frames["outcomes"].set_index("name")
    again = tv.outcomes(results.frames).set_index("name")
    assert kept["outcome"].to_dict() == again["outcome"].to_dict()
    assert kept["measured"].tolist() == pytest.approx(
        again["measured"].tolist(), rel=1e-3, abs=1e-3
    )
    assert results.frames["gains"]["layer"].tolist() == [
        tr.name_of(site) for site in results.frames["gains"]["site"]
    ]
    assert results.provenance["command"] == measured.COMMAND


def test_the_shipped_table_has_a_row_for_every_site() -> None:
    results = stored.load(measured.NAME)
    sites, table = results.frames["sites"]["site"], results.tensors["table"]
    assert table.shape == results.tensors["static"].shape == (len(sites), 20)
    assert set(results.frames["gains"]["site"]) <= set(sites)
    assert (table > 0).all()
