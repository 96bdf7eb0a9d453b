"""Softmax mass, smoothing, and all that is measured about error correction."""

import warnings
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from tiny_pipelines import stable_diffusion, tiny

from dqlab.errors import InvalidInputError
from dqlab.models.families import Sampler, family_of
from dqlab.phenomena import attention_mass as mass
from dqlab.phenomena import correction_checks as checks
from dqlab.phenomena import correction_claims as cc
from dqlab.phenomena import correction_sets as sets
from dqlab.phenomena import correction_variants as variants
from dqlab.phenomena import error_correction as measured
from dqlab.phenomena import slopes, smoothing, stored
from dqlab.phenomena.budget import PARTS, Predictions
from dqlab.phenomena.correction_bench import (
    Plan,
    bench,
    corrected_by,
    correction_of,
    from_tables,
    runs,
)
from dqlab.phenomena.ledger import OUTCOMES
from dqlab.trajectory import States, record

SAMPLER = Sampler(num_inference_steps=3)
PLAN = Plan(2, 16, 2, 2, 3, 2, softmax=(8, 4), intervals=(10, 1), multistep=3, sampler=SAMPLER)
quiet = pytest.mark.filterwarnings("ignore")


def test_many_keys_on_few_levels_lose_their_mass() -> None:
    """Uniform attention: 1 / N is below half a step, so that all becomes 0."""
    P = torch.full((4, 64), 1 / 64)
    assert mass.mass_facts(P, 4) == {"zeros": 1.0, "row_sum": 0.0}
    facts = mass.mass_facts(torch.eye(8), 4)
    assert facts["row_sum"] == pytest.approx(1.0) and facts["zeros"] == pytest.approx(7 / 8)


def test_made_up_attention_gains_nothing_below_one_key_per_level_and_much_far_above() -> None:
    """Reference values of the row sums: 1.00 and 0.49 for 64 keys of unit logits, within 0.01."""
    table = mass.synthetic_gain([(64, 8), (64, 4), (1024, 8)]).set_index(["keys", "bits"])
    assert table.loc[(64, 8), "row_sum"] == pytest.approx(1.0, abs=0.01)
    assert table.loc[(64, 4), "row_sum"] == pytest.approx(0.49, abs=0.01)
    assert abs(table.loc[(64, 8), "gain"]) < 0.1
    assert table.loc[(64, 4), "gain"] > 5
    assert table["ratio"].tolist() == [0.25, 4.0, 4.0]


def test_every_attention_shows_rows_that_sum_to_one(pipe, run) -> None:
    found = mass.softmax_outputs(pipe, run[0])
    assert len(found) == 4 and all(site.endswith(".p") for site in found)
    for P in found.values():
        assert P.ndim == 2 and len(P) <= mass.ROWS
        torch.testing.assert_close(P.sum(-1), torch.ones(len(P)))


def test_a_stretched_block_gains_from_smoothing_and_an_even_one_does_not() -> None:
    gains = smoothing.synthetic_gain([1.0, 8.0])
    assert gains["ratio"].tolist() == [1.0, 8.0]
    assert gains["gain"][0] == 0 and gains["gain"][1] > 3


def test_blocks_are_measured_without_changing_the_network(pipe, run, sampler) -> None:
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    table = smoothing.smoothing_gains(pipe, run[0], sampler=sampler)
    assert len(table) == sum(hasattr(m, "conv2") for m in pipe.unet.modules())
    assert table["gain"].tolist() == pytest.approx((table["smoothed"] - table["plain"]).tolist())
    assert all(torch.equal(before[k], v) for k, v in pipe.unet.state_dict().items())
    assert not any("divisor" in k.lower() for k in pipe.unet.state_dict())


@pytest.fixture(scope="module")
def results():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured, "MODEL", "latent-unet")
        with pytest.warns(UserWarning):
            return measured.measure(
                tiny(stable_diffusion), PLAN, scale_shift=tiny(stable_diffusion)
            )


def test_a_correction_fitted_on_the_bench_is_that_of_quantize(sampler) -> None:
    import dqlab

    pipe = tiny(stable_diffusion)
    r = runs(pipe, PLAN, cc.ETA_0, SAMPLER)
    b = bench(r, "rtn", (4, 8))
    mine = correction_of(b, "ptqd")
    setting = {"sampler": SAMPLER, "calibration": r.calibration}
    theirs = dqlab.quantize(pipe, dqlab.recipe("ptqd", samples=16), 4, 8, **setting)
    for name, table in theirs.corrector.correction.tables.items():
        torch.testing.assert_close(mine.tables[name], table, rtol=1e-3, atol=1e-5)
    pictures = [family_of(pipe).run(q, SAMPLER, [0]) for q in (corrected_by(b.job, mine), theirs)]
    torch.testing.assert_close(*pictures, rtol=0, atol=1e-3)


@quiet
def test_everything_is_measured(results) -> None:
    frames, tensors = results
    assert frames["ledger"]["method"].tolist() == [*measured.LEDGER] * 2
    assert frames["ledger"].query("method == 'qncd'")["db"].isna().all()
    assert set(frames["errors"]["sampler"]) == {cc.ETA_0, cc.ETA_1, cc.MULTISTEP}
    total = frames["budgets"][list(PARTS)].sum(axis=1)
    assert (total > 0).all()
    assert tensors["made"].shape == (2, len(measured.LEDGER), 2, 3, 16, 16)
    assert tensors["W4A8 tac-diffusion B"].shape == (3, 4, 8, 8)
    assert len(frames["estimates"]) == 2  # of 3 steps the last has no estimate
    assert frames["drift"].query("step == 0")["mean"].abs().max() < 1e-6
    assert set(frames["outcomes"]["outcome"]) <= {
        *OUTCOMES, "holds", "weaker", "absent", "bias", "slope", "equal", "none", "unclear",
        "opposite", "contrary", "same",
    }  # fmt: skip


def shares(bias: float, slope: float, low: float) -> pd.DataFrame:
    rows = [("bias", bias, low, bias), ("slope", slope, 0.0, slope), ("rest", 0.5, 0.5, 0.5)]
    return pd.DataFrame(rows, columns=["part", "share", "low", "high"]).assign(bits=cc.FIRST)


@pytest.mark.parametrize(
    ("bias", "slope", "key"),
    [(0.3, 0.01, "bias"), (0.01, 0.3, "slope"), (0.2, 0.2, "equal"), (0.01, 0.005, "none")],
)
def test_the_question_has_four_answers(bias: float, slope: float, key: str) -> None:
    assert cc.repairs(shares(bias, slope, 0.0)).key == key


@pytest.mark.parametrize(
    ("bias", "low", "key"), [(0.3, 0.2, "holds"), (0.05, 0.01, "weaker"), (0.01, 0.0, "absent")]
)
def test_the_shared_mean_is_judged_by_its_interval(bias: float, low: float, key: str) -> None:
    verdict = cc.shared_mean(shares(bias, 0.0, low))
    assert verdict.key == key and f"{100 * bias:.0f} %" in verdict.words


def errors(**settings: list[float]) -> pd.DataFrame:
    rows = [
        (cc.ETA_0, cc.FIRST, name, seed, mse)
        for name, values in settings.items()
        for seed, mse in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["sampler", "bits", "name", "seed", "mse"])


def test_a_fall_is_paired_and_in_per_cent() -> None:
    table = errors(rtn=[1.0, 2.0, 3.0], half=[0.5, 1.0, 1.5], mixed=[0.5, 4.0, 3.0])
    assert cc.fall(table, "half") == pytest.approx((50.0, 50.0, 50.0))
    assert cc.fall(table, "rtn", "half") == pytest.approx((-100.0, -100.0, -100.0))
    middle, low, high = cc.fall(table, "mixed")
    assert middle == pytest.approx(0.0, abs=1e-9) and low < middle < high


@pytest.mark.parametrize(
    ("gain", "ratio", "key"),
    [((0.5, 0.4, 0.6), 2.0, "contrary"), ((0.5, 0.4, 0.6), 0.5, "same"),
     ((0.5, -0.4, 0.9), 2.0, "unclear"), ((0.5, 0.4, 0.6), 1.0, "unclear")],
)  # fmt: skip
def test_answers_and_pictures_need_not_agree(gain, ratio: float, key: str) -> None:
    row = dict(zip(("gain", "low", "high"), gain, strict=True))
    named = {"sampler": cc.ETA_0, "bits": cc.LOWEST, "name": "d2-dpm", "over": "rtn", "db": 9.0}
    base = [1.0, 2.0, 3.0]
    table = errors(rtn=base, **{"d2-dpm": [ratio * x for x in base]}).assign(bits=cc.LOWEST)
    spread = {"bits": [cc.LOWEST], "name": ["d2-dpm"], "spread": [-0.07]}
    frames = {"gains": pd.DataFrame([named | row]), "errors": table}
    verdict = cc.answers_or_pictures(frames | {"budgets": pd.DataFrame(spread)})
    assert verdict.key == key and "spread -7 %" in verdict.words


@pytest.mark.parametrize(
    ("rare", "often", "key"),
    [(0.5, 2.0, "holds"), (2.0, 0.5, "opposite"), (1.0, 1.0, "unclear")],
)
def test_how_often_to_estimate_has_three_outcomes(rare: float, often: float, key: str) -> None:
    base = [1.0, 2.0, 3.0, 4.0]
    table = errors(
        rtn=base,
        **{"qncd, I = 10": [rare * x for x in base], "qncd, I = 1": [often * x for x in base]},
    )
    assert cc.rarely(table).key == key


def test_the_shipped_outcomes_follow_from_the_shipped_numbers() -> None:
    """A verdict about the shipped network is data: here it is derived once more."""
    results = stored.load(measured.NAME)
    kept = results.frames["outcomes"].set_index("name")
    again = cc.outcomes(results.frames).set_index("name")
    assert again["outcome"].to_dict() == kept["outcome"].to_dict()
    assert again["measured"].tolist() == pytest.approx(
        kept["measured"].tolist(), rel=1e-3, abs=1e-3
    )


def test_the_command_writes_results_with_their_origin(shipped, monkeypatch) -> None:
    tiny(stable_diffusion).save_pretrained(shipped / "models" / "latent-unet")
    monkeypatch.setattr(measured, "measure", lambda pipe, say: ({}, {"x": torch.ones(1)}))
    measured.main()
    assert stored.load(measured.NAME).provenance["command"] == measured.COMMAND


def test_a_chain_is_compared_state_by_state() -> None:
    """Full precision against itself drifts nowhere."""
    pipe = tiny(stable_diffusion)
    r = runs(pipe, PLAN, cc.ETA_0, SAMPLER)
    rows = measured._drift(bench(r, "rtn", (8, 8)), pipe, "itself")
    assert len(rows) == 3 * 4 and max(abs(row["mean"]) for row in rows) < 1e-5
    assert record(pipe, [0], SAMPLER)[0].branches


@pytest.fixture(scope="module")
def checked():
    plan = Plan(2, 16, 2, 2, 3, 2, bits=((4, 8),), sampler=SAMPLER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "ASKED", 16)
        patch.setattr(checks, "INTERVAL", 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return checks.measure(tiny(stable_diffusion), plan)[0]


@quiet
def test_own_numbers_are_held_against_what_they_stand_for(checked) -> None:
    assert set(checked) == {"errors", "own estimates", "mass", "attention", "mixed"}
    assert checked["mass"]["row_sum"].between(0.9, 1.1).all()
    assert set(checked["mixed"]["bits"]) <= {4, 8}
    assert (checked["mixed"]["forward"].diff().dropna() > 0).all()
    assert checked["attention"]["samples"].tolist() == [2, 1, 2, 2]


@pytest.fixture(scope="module")
def varied():
    plan = Plan(2, 8, 2, 4, 3, 2, bits=((4, 8), (4, 4)), sampler=SAMPLER)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(variants, "COUNTS", (2, 12))
        return variants.measure(tiny(stable_diffusion), plan)[0]


def test_every_part_and_setting_is_measured(varied) -> None:
    assert set(varied) == {
        "gains", "steps", "errors", "ablations", "misplaced", "lost", "slopes", "shapes",
    }  # fmt: skip
    table = varied["ablations"].set_index(["bits", "method", "option"])["db"]
    assert table[("W4A8", "ptqd", "slope and bias")] != table[("W4A8", "ptqd", "slope alone")]
    assert table[("W4A8", "ptqd", "from 2 runs")] != table[("W4A8", "ptqd", "from 12 runs")]
    assert set(varied["misplaced"]["option"]) == {"guidance 4", "1 steps"}
    painted = varied["errors"].groupby("bits")["name"].unique()
    assert {*variants.CHAINS, "qncd, I = 5"} <= set(painted["W4A8"])
    assert {"rtn", *variants.PAINTED} == set(painted["W4A6"])


def test_the_law_takes_the_variance_it_says_where_it_was_fitted(varied) -> None:
    """Least squares: to rounding on the same predictions, and on no others."""
    lost = varied["lost"]
    inside = lost[lost["runs"] == "the fitted themselves"]["lost"]
    assert len(inside) == 3 and (inside - 1).abs().max() < 0.01
    assert len(lost) == 3 * 3


def planted(slopes_: list[float], means=(0.0, 0.0)) -> Predictions:
    """One step of pictures whose error is a slope of each picture's own, beside channel means."""
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(len(slopes_), 2, 16, 16, generator=generator)
    shift = torch.tensor(means).reshape(1, 2, 1, 1)
    own = torch.tensor(slopes_).reshape(-1, 1, 1, 1)
    rows = torch.arange(len(slopes_))
    states = States(eps, rows * 0, rows * 0, rows, eps)
    return Predictions(states, eps + shift, eps + shift + own * eps + shift)


def test_pictures_with_slopes_of_their_own_make_the_common_one_unsure() -> None:
    """The interval follows the number of pictures: slopes of +-0.1, 16 of them, 2 s.d. 0.05."""
    b = SimpleNamespace(fit=planted([0.1, -0.1] * 8), held=planted([0.0] * 16))
    table = slopes.slopes(b, 4).set_index(["centre", "runs"])
    fitted, held = (table.loc[(slopes.WITHIN, runs)] for runs in ("fitted", "held out"))
    assert fitted["spread"] == pytest.approx(0.1, rel=0.1)
    assert 0.07 < fitted["high"] - fitted["low"] < 0.12
    assert abs(held["k"]) < 1e-6 and held["high"] - held["low"] < 1e-6


def test_channel_means_in_both_count_as_a_slope_only_if_pooled() -> None:
    """Means (0.5, -0.5) of eps and D: between channels a slope of 1 with a fifth of the power."""
    b = SimpleNamespace(fit=planted([0.0] * 4, (0.5, -0.5)), held=planted([0.0] * 4))
    table = slopes.slopes(b, 2).set_index(["centre", "runs"])["k"]
    assert table[(slopes.POOLED, "fitted")] == pytest.approx(0.2, rel=0.05)
    assert table[(slopes.WITHIN, "fitted")] == pytest.approx(0.0, abs=1e-6)
    b = SimpleNamespace(fit=planted([0.0] * 4, (0.5, 0.5)), held=planted([0.0] * 4))
    table = slopes.slopes(b, 2).set_index(["centre", "runs"])["k"]
    assert table[(slopes.POOLED, "fitted")] == pytest.approx(0.0, abs=0.01)  # one mean for all


def test_a_set_is_measured_against_full_precision() -> None:
    """Half the contrast is a quarter of the variance; the same set has no distance."""
    exact = torch.rand(128, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    same, half = (sets._numbers(exact, x) for x in (exact, exact / 2))
    torch.testing.assert_close(half["variance"], torch.full_like(half["variance"], 0.25))
    assert bool((same["variance"] == 1).all())
    assert float(same["distance"][0]) < 0.01 < float(half["distance"][0])


def test_a_normal_error_has_no_skew_and_no_kurtosis() -> None:
    rows = torch.arange(64)
    eps, noise = torch.randn(2, 64, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    states = States(eps, rows * 0, rows * 0, rows, eps)
    normal = slopes.shapes(Predictions(states, eps, 2 * eps + noise)).iloc[0]
    heavy = slopes.shapes(Predictions(states, eps, 2 * eps + noise**3)).iloc[0]
    assert normal["r"] == pytest.approx(0.5**0.5, abs=0.02)
    assert abs(normal["kurtosis_residual"]) < 0.1 and abs(normal["skew_error"]) < 0.05
    assert heavy["kurtosis_residual"] > 5


def test_a_cloud_is_described_by_its_tilt_and_tails() -> None:
    table = pd.DataFrame({"bits": ["W4A8", "W4A4"], "r": [0.5, -0.1],
                          "kurtosis_residual": [3.0, 0.2]})  # fmt: skip
    assert "is tilted (R +0.50) and heavy-tailed" in cc.cloud(table, "W4A8")
    assert "hardly tilted (R -0.10) and nearly normal" in cc.cloud(table, "W4A4")


@pytest.mark.parametrize(("held", "key"), [(0.004, "few"), (0.001, "different")])
def test_slopes_differ_if_their_intervals_do(held: float, key: str) -> None:
    rows = [("fitted", 64, 0.007, 0.005, 0.009), ("held out", 32, held, held - 1e-3, held + 2e-3)]
    table = pd.DataFrame(rows, columns=["runs", "count", "k", "low", "high"])
    verdict = cc.few_pictures(
        table.assign(bits=cc.FIRST, centre=slopes.WITHIN, spread=[0.006, 0.005])
    )
    assert verdict.key == key and "0.70 % [0.50, 0.90]" in verdict.words


@pytest.fixture(scope="module")
def painted():
    plan = Plan(2, 8, 2, 1, 3, 2, bits=((4, 4),), sampler=SAMPLER)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sets, "features", lambda images: images.flatten(1)[:, ::12])
        patch.setattr(sets, "DRAWN", 4)
        return sets.measure(tiny(stable_diffusion), plan, size=sets.Size(80, 40))[0]


def test_sets_of_pictures_are_compared_with_and_without_the_variance_part(painted) -> None:
    table, room = (painted[name].set_index("name") for name in ("sets", "made room"))
    assert len(table) == 1 + 2 * len(sets.PAIRS) and set(room.index) == set(sets.PAIRS)
    for name, without in sets.PAIRS.items():
        gap = table.loc[name, "distance"] - table.loc[without, "distance"]
        assert room.loc[name, "distance"] == pytest.approx(gap, abs=1e-6)
    assert (room["variance_low"] <= room["variance"]).all()
    assert painted["residual"]["share"].gt(0).all()


@pytest.mark.parametrize(
    ("weights", "sampler", "told"),
    [
        (4, Sampler(10), "num_inference_steps=10"),
        (4, Sampler(eta=1.0), "eta=1"),
        (4, Sampler(guidance_scale=3.0), "guidance_scale=3"),
        (8, Sampler(), "W8A8"),
    ],
)
def test_stored_tables_are_refused_where_they_were_not_fitted(weights, sampler, told) -> None:
    job = SimpleNamespace(family=family_of(tiny(stable_diffusion)), weights=weights,
                          activations=8, sampler=sampler)  # fmt: skip
    with pytest.raises(InvalidInputError, match=rf"fitted for W4A8 .*, but .*{told}"):
        from_tables(job, "ptqd", {}, "W4A8")
