"""Shortcuts: what they read, what splitting gains in theory and on a layer, and the claims."""

import pandas as pd
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from dqlab.errors import InvalidInputError
from dqlab.phenomena import bimodal_shortcuts as measured
from dqlab.phenomena import shortcut_claims as claimed
from dqlab.phenomena import shortcuts as sc
from dqlab.phenomena import stored
from dqlab.phenomena.ledger import OUTCOMES, Claim, claims_frame, db_by_setting, gain_db
from dqlab.phenomena.steps import chain_errors
from dqlab.trajectory import States, record


@pytest.fixture(scope="module")
def wide_pipe() -> DDIMPipeline:
    """A random U-Net no norm group of which straddles a concatenation."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(12, 24), layers_per_block=1, norm_num_groups=6,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=12,
        norm_eps=1e-6,
    ).eval()  # fmt: skip
    scheduler = DDIMScheduler(timestep_spacing="trailing", beta_schedule="linear")
    return DDIMPipeline(unet, scheduler)


@pytest.fixture(scope="module")
def found(wide_pipe, sampler) -> list[sc.Shortcut]:
    return sc.shortcuts(wide_pipe, record(wide_pipe, [0, 1], sampler)[0], keep=8)


def uniform(ratio: float) -> sc.Shortcut:
    """8 + 8 channels on [-1, 1], skip and its weights injected with `ratio`."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(20_000, 16, generator=generator) * 2 - 1
    weight = torch.randn(32, 16, generator=generator)
    plain = sc.Shortcut("x", (8, 8), x.amin(0), x.amax(0), x, weight, (1.0, 1.0))
    return plain.scaled(ratio)


def test_every_shortcut_is_seen_as_the_layer_reads_it(wide_pipe, found, sampler) -> None:
    states = record(wide_pipe, [0, 1], sampler)[0]
    seen = []
    layer = wide_pipe.unet.up_blocks[0].resnets[1].conv_shortcut
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    states.call(wide_pipe.unet)
    handle.remove()
    one = next(s for s in found if s.layer == "up_blocks.0.resnets.1.conv_shortcut")
    assert [s.sizes for s in found] == [(24, 24), (24, 12), (24, 12), (12, 12)]
    assert one.name == "up 0 res 1"
    torch.testing.assert_close(one.high, seen[0].amax((0, 2, 3)))
    torch.testing.assert_close(one.reach_of("skip"), float(seen[0][:, 24:].abs().max()))
    assert one.sample.shape == (len(states) * 8, 36)
    assert set(one.sample[:8, 0].tolist()) <= set(seen[0][0, 0].flatten().tolist())
    assert one.weight.shape == (24, 36)


def test_a_network_without_shortcuts_is_refused(wide_pipe, sampler, monkeypatch) -> None:
    monkeypatch.setattr(sc, "readers", lambda model, run: {})
    with pytest.raises(InvalidInputError, match="no shortcut"):
        sc.shortcuts(wide_pipe, record(wide_pipe, [0], sampler)[0])


def test_scaling_moves_ratios_and_keeps_the_product(found) -> None:
    plain, moved = found[0], found[0].scaled(16)
    assert moved.rho_x == pytest.approx(plain.rho_x / 16)
    assert moved.rho_w == pytest.approx(plain.rho_w * 16)
    torch.testing.assert_close(moved.sample @ moved.weight.T, plain.sample @ plain.weight.T)
    table = sc.ratio_table(found)
    assert table["rho_x"].tolist() == pytest.approx([s.rho_x for s in found])


@pytest.mark.parametrize("ratio", [1 / 16, 1.0, 4.0, 64.0])
def test_splitting_gains_what_the_formula_says(ratio: float) -> None:
    """Within 1 dB, the margin of the closed form for uniform parts."""
    s = uniform(ratio)
    gain = sc.output_db(s, None, 8, True) - sc.output_db(s, None, 8, False)
    assert gain == pytest.approx(sc.expected_gain_db(ratio), abs=1.0)
    curve = sc.synthetic_gain([ratio])
    assert curve["gain"][0] == pytest.approx(sc.expected_gain_db(ratio), abs=1.0)


def test_a_split_layer_does_not_notice_the_injection_and_a_shared_one_does() -> None:
    """Hard by construction: scales take a power of two up exactly."""
    for bits in ((8, 8), (4, 8), (None, 4)):
        assert sc.output_db(uniform(128), *bits, True) == sc.output_db(uniform(1), *bits, True)
    assert sc.output_db(uniform(1), 8, 8, False) - sc.output_db(uniform(128), 8, 8, False) >= 25


@pytest.mark.parametrize(("factor", "key"), [(128, "absorbed"), (8, "partly"), (3, "leaks")])
def test_what_layers_take_up_is_told(factor: float, key: str, monkeypatch) -> None:
    """3 is no power of two, so scales take it up but for rounding; that is made visible here."""
    if key == "leaks":
        real = sc.output_db
        monkeypatch.setattr(
            claimed, "output_db", lambda s, *bits: real(s, *bits) - s.reach_of("skip")
        )
    assert claimed.absorbed([uniform(1)], factor).key == key


@pytest.mark.parametrize(
    ("lead", "key"), [((1, 1, 1), "most"), ((1, 1, -1), "many"), ((-1, -1, 1), "few")]
)
def test_steps_at_which_the_split_is_no_worse_are_counted(lead, key: str) -> None:
    rows = [
        (8, split, step, 0.0, 0, 1.0, 10 ** (-(30 + split * lead[step]) / 10))
        for split in (False, True)
        for step in range(3)
    ]
    names = ["factor", "split", "step", "t", "seed", "signal", "noise"]
    found = claimed.better_steps(pd.DataFrame(rows, columns=names), 8)
    assert found.key == key
    assert f"{sum(x > 0 for x in lead)} of 3" in found.words


def test_a_chains_error_is_told_from_the_first_step_on() -> None:
    step, seed = torch.arange(4).repeat_interleave(2), torch.arange(2).repeat(4)
    exact = States(torch.zeros(8, 3, 2, 2), 900.0 - step, step, seed, torch.zeros(8, 3, 2, 2))
    runs = {
        name: States(c * step.float()[:, None, None, None].expand(-1, 3, 2, 2), exact.t, step,
                     seed, exact.x)
        for name, c in {"W8": 0.1, "W4": 1.0}.items()
    }  # fmt: skip
    found = chain_errors(exact, runs)
    assert found["step"].tolist() == [1, 2, 3] * 2
    assert found.query("series == 'W4'")["error"].tolist() == pytest.approx([1, 4, 9])
    assert claimed.grows(found).key == "ordered"
    assert claimed.grows(found.iloc[::-1]).key == "crossing"


@pytest.mark.parametrize(
    ("after", "outcome"), [(0.01, OUTCOMES[0]), (0.06, OUTCOMES[1]), (0.09, OUTCOMES[2])]
)
def test_pictures_are_closer_if_the_widest_interval_says_so(after, outcome: str) -> None:
    rows = [("+ split", 0.1, 0.09, 0.11), ("+ reconstruction", after, after, after * 1.1)]
    ledger = pd.DataFrame(rows, columns=["method", "mse", "mse_low", "mse_high"])
    ledger = ledger.assign(weights=4, activations=8)
    found = claimed.claims(
        ratios(1.0), split_gains(0.2, -0.1), pd.DataFrame(columns=LADDER), ledger
    )
    assert found["pictures"].outcome == outcome
    assert found["no layer"].measured == 50


LADDER = ["weights", "activations", "rung", "step", "t", "seed", "signal", "noise"]


def split_gains(*gains: float) -> pd.DataFrame:
    return pd.DataFrame({"weights": 4, "activations": 8, "gain": gains})


def test_levels_left_to_a_part_fall_with_the_ratio() -> None:
    assert sc.levels_on(uniform(64), "skip", 8) == 256
    assert 3 <= sc.levels_on(uniform(64), "hidden", 8) <= 5
    assert sc.levels_on(uniform(1), "hidden", 8) >= 255


def test_gains_list_every_layer_and_setting(found) -> None:
    table = sc.split_gains(found, [(8, 8), (None, 4)])
    assert len(table) == 2 * len(found)
    torch.testing.assert_close(
        torch.tensor(table["gain"]), torch.tensor(table["split"] - table["shared"])
    )


def powers(db: float, seeds=range(4), spread: float = 0.0) -> pd.DataFrame:
    rows = [
        (step, 0.0, seed, 1.0, 10 ** (-(db + spread * (seed % 2)) / 10))
        for step in range(3)
        for seed in seeds
    ]
    return pd.DataFrame(rows, columns=["step", "t", "seed", "signal", "noise"])


def test_a_gain_is_paired_over_seeds() -> None:
    gain, low, high = gain_db(powers(20, spread=9), powers(23, spread=9))
    assert (gain, low, high) == pytest.approx((3, 3, 3))
    gain, low, high = gain_db(powers(20), powers(23, spread=4))
    assert low < gain < high
    with pytest.raises(InvalidInputError, match="different steps or seeds"):
        gain_db(powers(20), powers(20, seeds=range(5)))


def test_settings_come_with_their_interval() -> None:
    both = pd.concat(
        [powers(20, spread=3).assign(kind="a", bits=8), powers(9).assign(kind="b", bits=4)]
    )
    table = db_by_setting(both, ["kind", "bits"])
    assert table["kind"].tolist() == ["a", "b"]
    assert table["low"][0] < table["db"][0] < table["high"][0]
    assert table["db"][1] == pytest.approx(9)


@pytest.mark.parametrize(
    ("measured_now", "low", "outcome"),
    [
        (4.0, 3.0, OUTCOMES[0]),
        (1.0, 0.5, OUTCOMES[1]),
        (4.0, -1.0, OUTCOMES[2]),
        (-2, -3, OUTCOMES[2]),
    ],
)
def test_a_claim_comes_to_one_of_three(measured_now, low, outcome: str) -> None:
    claim = Claim("says", "quoted", measured_now, low, 9.0, "dB", 3.0)
    assert claim.outcome == outcome
    assert claim.row()[-1] == outcome
    assert f"{measured_now:.2f} dB [{low:.2f}, 9.00]" in claim.row()[2]
    frame = claims_frame({"one": claim})
    assert frame["outcome"].tolist() == [outcome]


def ratios(*values: float) -> pd.DataFrame:
    return pd.DataFrame({"layer": [f"l{i}" for i in range(len(values))], "rho_x": values})


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ((1.0, 20.0), "holds"),
        ((0.02, 1.0), "holds"),
        ((1, 3), "weaker"),
        ((0.8, 1.5), "absent"),
    ],
)
def test_the_phenomenon_is_judged_in_both_directions(values, key: str) -> None:
    assert measured.imbalance(ratios(*values)).key == key


@pytest.mark.parametrize(
    ("unsplit", "split", "key"),
    [
        ((34, 33.5), (34, 34), "nothing"),
        ((34, 10), (34, 33.8), "quantized"),
        ((34, 10), (34, 20), "both sides"),
    ],
)
def test_the_injections_effect_has_three_branches(unsplit, split, key: str) -> None:
    table = pd.DataFrame({"factor": [1, 64], "unsplit": unsplit, "split": split})
    assert measured.injection(table, 64).key == key


@pytest.mark.parametrize(
    ("low", "high", "key"),
    [
        (0.5, 2, "helps"),
        (-2, -0.5, "hurts"),
        (-0.4, 0.2, "nothing"),
        (0.1, 1, "nothing"),
    ],
)
def test_a_rung_is_said_to_help_only_beyond_doubt(low: float, high: float, key: str) -> None:
    row = pd.Series(
        {"weights": 4, "activations": 8, "rung": "+ split", "gain": 0.1, "low": low, "high": high}
    )
    assert measured.rung_verdict(row).key == key


def test_everything_is_measured(wide_pipe, sampler, shipped, monkeypatch) -> None:
    rungs = {name: r for name, r in measured.RUNGS.items() if not r[1].get("reconstruct")}
    monkeypatch.setattr(measured, "RUNGS", rungs)
    quick = {name: o | {"reconstruct": False} for name, o in measured.LEARNED.items()}
    monkeypatch.setattr(measured, "LEARNED", quick)
    plan = measured.Plan(
        trajectories=2, steps=3, held_out=2, pictures=4, kept=2, factors=(1, 64),
        bits=((4, 8), (4, 4)), learned=(), shown=((4, 8),), judged=("rtn", "+ split"),
        sampler=sampler,
    )  # fmt: skip
    frames, tensors = measured.measure(wide_pipe, plan)
    assert len(frames["sweep"]) == 2 * 2 * 3 * 2
    assert tensors["sweep"].shape == (2, 2, 2, 3, 8, 8)
    assert tensors["ladder"].shape == (1, len(rungs), 2, 3, 8, 8)
    assert frames["ledger"]["method"].tolist() == ["rtn", "+ split"]
    gains = measured.ladder_gains(frames["ladder"])
    assert gains["rung"].tolist() == [*rungs] * 2
    table = measured.sweep_table(frames["sweep"]).set_index("factor")
    assert abs(table["split"][64] - table["split"][1]) < 0.5
    assert table["unsplit"][64] < table["unsplit"][1] - 10
    assert frames["learned"]["setting"].unique().tolist() == [*measured.LEARNED]
    run = frames["run"].groupby("series")["error"].agg(list)
    assert run["nearest, split"] == run["learned, split"]  # nothing was learned here


def test_learned_settings_differ_in_one_thing_each() -> None:
    nearest, one, split = measured.LEARNED.values()
    assert split == nearest | {"reconstruct": True} == one | {"split": True}
    assert nearest["split"] and not nearest["reconstruct"] and not one["split"]


@pytest.mark.parametrize(
    ("noise", "outcome"), [(0.1, OUTCOMES[0]), (0.9, OUTCOMES[1]), (1.5, OUTCOMES[2])]
)
def test_what_the_split_and_learning_are_worth_together(noise, outcome: str) -> None:
    rows = [(k, 0, 900, s, 10.0, noise if k == "learned, split" else 1.0)
            for k in measured.LEARNED for s in range(4)]  # fmt: skip
    powers = pd.DataFrame(rows, columns=["setting", "step", "t", "seed", "signal", "noise"])
    run = pd.DataFrame(
        [(k, step, 1.0 if k == "nearest, split" else noise)
         for k in measured.LEARNED for step in range(1, 5)],
        columns=["series", "step", "error"],
    )  # fmt: skip
    found = claimed.learned_claims(powers, run)
    assert found["split, learned"].outcome == outcome
    assert found["run"].measured == pytest.approx(1 / noise)
    run.loc[run["step"] < 3, "error"] = 100.0  # early steps say nothing
    assert claimed.learned_claims(powers, run)["run"].measured == pytest.approx(1 / noise)


def test_the_shipped_outcomes_follow_from_the_shipped_numbers() -> None:
    """A verdict about the shipped network is data: here it is derived once more."""
    results = stored.load(measured.NAME)
    kept = results.frames["outcomes"].set_index("name")
    again = measured.outcomes(results.frames).set_index("name")
    assert again["outcome"].to_dict() == kept["outcome"].to_dict()
    assert {"populations", "layers", "split", "injection"} <= set(again.index)
    expected = pytest.approx(kept["measured"].tolist(), rel=1e-4, abs=1e-3)
    assert again["measured"].tolist() == expected


def test_the_command_writes_results_with_their_origin(wide_pipe, shipped, monkeypatch) -> None:
    wide_pipe.save_pretrained(shipped / "models" / "pixel-unet")
    monkeypatch.setattr(measured, "measure", lambda pipe, say: ({}, {"x": torch.ones(1)}))
    measured.main()
    assert stored.load("bimodal-shortcuts").provenance["command"] == measured.COMMAND
