"""Pictures, explorers and tables of the error correction notebook, at every setting."""

import warnings

import pandas as pd
import pytest
import torch
from explorer_cases import presets_move_the_picture, settings_have_sentences_of_their_own

from dqlab.errors import InvalidInputError
from dqlab.phenomena import correction_claims as cc
from dqlab.phenomena.budget import PARTS, synthetic_bias_gain
from dqlab.phenomena.error_correction import BUDGETED, LEDGER
from dqlab.phenomena.stored import Stored
from dqlab.show import correction_tables as tables
from dqlab.show import error_correction as explore
from dqlab.show.error_cloud import error_cloud
from dqlab.show.step_bits import step_bits

BITS = ("W4A8", "W4A4")


def budget_row(bits: str, name: str, step: int) -> dict:
    scale = (1 + step) * (2 if bits == "W4A4" else 1) * (0.5 if name != "rtn" else 1)
    parts = {"bias": 0.003 * scale, "slope": 0.0001 * scale, "rest": 0.01}
    means = {f"mean_{c}": scale * 0.02 * (c - 1.5) for c in range(4)}
    k = {"k": 0.01, "spread": -0.01, "timestep": 999 - 300 * step}
    return {"bits": bits, "name": name, "step": step, **parts, **means, **k}


def results() -> Stored:
    names = ("rtn", *BUDGETED)
    budgets = [budget_row(b, n, s) for b in BITS for n in names for s in range(3)]
    errors = [
        {"sampler": cc.ETA_0, "bits": b, "name": n, "seed": s, "mse": 0.001 * (1 + i + s)}
        for b in BITS
        for i, n in enumerate(LEDGER)
        for s in range(3)
    ]
    row = {
        "db": 20.0, "db_low": 19.0, "db_high": 21.0, "mse": 0.001, "mse_low": 0.0005,
        "mse_high": 0.002, "garment": 0.9, "colour": 1.0, "background": 1.0, "kilobytes": 700.0,
        "gigabitops": 3.2, "calls": 0, "table": 1.5,
    }  # fmt: skip
    ledger = [{"method": n, "bits": b} | row for b in BITS for n in LEDGER]
    ledger[2] |= {"db": float("nan"), "calls": 2}
    frames = {"budgets": budgets, "errors": errors, "ledger": ledger}

    def made(*shape: int) -> torch.Tensor:
        return torch.randint(256, (*shape, 2, 3, 8, 8), dtype=torch.uint8)

    tensors = {"exact": made(), "made": made(len(BITS), len(LEDGER))}
    return Stored({name: pd.DataFrame(rows) for name, rows in frames.items()}, tensors, {})


def probabilities(keys: int) -> torch.Tensor:
    logits = torch.randn(64, keys, generator=torch.Generator().manual_seed(0))
    return (logits * 2).softmax(-1)


FOUND = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.p": probabilities(64),
    "mid_block.attentions.0.transformer_blocks.0.attn2.p": probabilities(16),
}
MAKERS = {
    "budget": lambda: explore.budget_explorer(results()),
    "means": lambda: explore.means_explorer(results()),
    "runs": lambda: explore.run_explorer(results()),
    "mass": lambda: explore.mass_explorer(FOUND),
}


@pytest.mark.parametrize("name", MAKERS)
def test_settings_have_a_sentence_of_their_own(name: str) -> None:
    settings_have_sentences_of_their_own(MAKERS[name]())


@pytest.mark.parametrize("name", MAKERS)
def test_presets_move_the_picture(name: str) -> None:
    presets_move_the_picture(MAKERS[name]())


def test_bars_are_stacked_to_the_whole() -> None:
    rows = pd.DataFrame([budget_row("W4A8", n, 1) for n in ("rtn", "ptqd")])
    picture = explore.budget_bars(rows, "words")
    tops = [max(trace["y"]) for trace in picture.plotly["data"] if trace["type"] == "bar"]
    parts = rows[list(PARTS)].iloc[0].tolist()
    sums = [sum(parts), sum(parts[:2]), parts[0]]
    assert tops == pytest.approx(sums, rel=1e-3)
    told = {note["text"] for note in picture.plotly["layout"]["annotations"]}
    assert set(PARTS) <= told


def test_the_budget_sentence_says_what_each_correction_leaves() -> None:
    rows = pd.DataFrame(
        [{"name": "rtn", "bias": 0.25, "slope": 0.05, "rest": 0.7},
         {"name": "ptqd", "bias": 0.0, "slope": 0.0, "rest": 0.7}]
    )  # fmt: skip
    words = explore.budget_sentence(rows, "W4A8, step 3")
    assert words.startswith("W4A8, step 3: bias 25 %, slope 5 %, rest 70 % of 1.")
    assert "ptqd 70 %" in words


def test_panels_share_their_scale() -> None:
    table = results().frames["budgets"].query("bits == 'W4A8'")
    pair = {n: table[table["name"] == n] for n in ("rtn", "ptqd")}
    picture = explore.signed_means(pair, "words", 0.1)
    axes = [picture.plotly["layout"][f"yaxis{i}"]["range"] for i in ("", "2")]
    assert axes == [[-0.1, 0.1]] * 2


def test_row_sums_are_centred_by_the_constant() -> None:
    picture = explore.row_sums(FOUND[next(iter(FOUND))], 4, "words")
    rounded, corrected = (t for t in picture.plotly["data"] if t["type"] == "bar")
    means = [sum(x * y for x, y in zip(t["x"], t["y"], strict=True)) for t in (rounded, corrected)]
    assert means[0] < 0.95 and means[1] == pytest.approx(1.0, abs=0.03)


def test_deciders_hold_ours_and_the_papers() -> None:
    picture = explore.bias_decider(synthetic_bias_gain([0.1, 0.5]), results().frames["budgets"])
    assert "At W4A8 the bias holds" in picture.sentence
    softmax = pd.DataFrame(
        {"bits": [8, 4], "granularity": "head", "gain": [0.0, 9.0]}
    )  # fmt: skip
    curve = pd.DataFrame({"ratio": [0.25, 16.0], "gain": [0.0, 30.0]})
    words = explore.mass_decider(curve, softmax).sentence
    assert "64 keys at 8 bits are 0.25 per level" in words and "9.0 dB" in words
    blocks = pd.DataFrame(
        {"model": ["pixel-unet", "latent-unet"], "ratio": [2.0, 3.0], "gain": [2.0, -0.5]}
    )
    told = explore.smoothing_decider(curve, blocks).sentence
    assert "gains 2 dB in" in told and "-0.5 dB" in told


def test_curves_say_what_they_show() -> None:
    frame = pd.DataFrame(
        {"step": [0, 1], "timestep": [999, 500], "estimate": [0.0, 0.3], "truth": [0.01, -0.1]}
    )
    assert "at step 1: 0.300 instead of -0.100" in explore.estimates(frame).sentence
    rows = [
        {"name": n, "step": s, "timestep": 999 - s, "channel": c, "mean": 0.1 * s * (i + 1)}
        for i, n in enumerate(("rtn", "ptqd", "tac-diffusion"))
        for s in range(3)
        for c in range(2)
    ]
    words = explore.drift(pd.DataFrame(rows)).sentence
    assert "plain rounding 0.2, ptqd 0.4, tac-diffusion 0.6" in words


def test_tables_say_in_words_what_they_show() -> None:
    frames = results().frames
    ledger = tables.ledger_table(frames["ledger"]).words
    assert "W4A8 | qncd | not defined | " in ledger
    assert "W4A8 | ptqd | 20.0 [19.0, 21.0] | 1.00e-03" in ledger and "701.5" in ledger
    errors = tables.errors_table(frames["errors"], {"rtn": "", "ptqd": "rtn"}, "words").words
    assert "DDIM, eta 0 | W4A8 | rtn | 2.00e-03" in errors
    assert "-171 % [" in errors  # ratios 4, 2.5 and 2: the cube root of 20 is 2.71
    samplers = tables.samplers_table(frames["errors"], "words").words
    assert samplers.count("\n") == 4
    gains = pd.DataFrame(
        [{"sampler": cc.ETA_0, "bits": "W4A8", "name": "ptqd", "over": "rtn", "db": 21.0,
          "gain": 1.0, "low": 0.5, "high": 1.5}]
    )  # fmt: skip
    assert "ptqd | 21.0 | +1.0 [+0.5, +1.5] | rtn" in tables.gains_table(gains, "words").words
    softmax = pd.DataFrame(
        [{"bits": 4, "granularity": "head", "before": 20.0, "db": 30.0, "gain": 10.0, "low": 9.0,
          "high": 11.0}]
    )  # fmt: skip
    assert "4 | head | 20.0 | 30.0 | +10.0 [+9.0, +11.0]" in tables.softmax_table(softmax).words
    parts = gains.assign(option="bias alone")
    assert (
        "W4A8 | bias alone | 21.0 | +1.0 [+0.5, +1.5]"
        in tables.ablations_table(parts, "words").words
    )
    beside = gains.assign(others="W4A8", samples=8, before=20.0)
    assert "W4A8 | 8 | 20.0 | 21.0 | +1.0 [" in tables.attention_table(beside, "words").words


def test_tables_of_what_was_taken_apart_say_it_in_words() -> None:
    ends = {"low": 0.1, "high": 0.3}
    misplaced = pd.DataFrame([{"method": "ptqd", "option": "10 steps", "gain": 0.2} | ends])
    assert "ptqd | 10 steps | 0.20 [0.10, 0.30]" in tables.misplaced_table(misplaced, "").words
    slope = {"bits": "W4A8", "centre": "within channels", "runs": "fitted", "count": 64,
             "k": 0.002, "low": 0.001, "high": 0.003, "spread": 0.0051}  # fmt: skip
    told = tables.slopes_table(pd.DataFrame([slope]), "").words
    assert "fitted, 64 runs | +0.20 % [+0.10, +0.30] | 0.51 %" in told
    rows = [{"bits": "W4A4", "r": r, "skew_residual": -0.001, "kurtosis_residual": 4.0,
             "kurtosis_error": 1.0, "kurtosis_answer": 0.0} for r in (0.1, 0.2, 0.4)]  # fmt: skip
    told = tables.shapes_table(pd.DataFrame(rows), "").words
    assert "W4A4 | 0.10 to 0.40, median 0.20 | 0.00 to 0.00, median 0.00 | 4.00 to 4.00" in told


def test_sets_show_what_the_variance_part_changes_where_there_is_one() -> None:
    sets = [{"name": name, "distance": 0.5, "variance": 0.9} for name in ("rtn", "ptqd")]
    part = {f"{key}{end}": x for key in ("distance", "variance")
            for end, x in (("", -0.01), ("_low", -0.02), ("_high", 0.0))}  # fmt: skip
    told = tables.sets_table(pd.DataFrame(sets), pd.DataFrame([{"name": "ptqd"} | part]), "").words
    assert "rtn | 0.500 | 0.900" in told
    assert "ptqd | 0.500 | -0.0100 [-0.0200, +0.0000] | 0.900 | -0.0100" in told


def test_a_warning_comes_back_beside_the_result() -> None:
    assert tables.with_warning(lambda: warnings.warn("too few", stacklevel=1) or 3) == (
        3, "too few",
    )  # fmt: skip
    assert tables.with_warning(lambda: 4) == (4, "")


def test_the_cloud_tells_the_planted_slope_and_means() -> None:
    eps = torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([0.5, -0.25]).reshape(1, 2, 1, 1)
    picture = error_cloud(eps, 1.5 * eps + shift, "Step 1")
    assert picture.sentence.startswith("Step 1: slope 0.5; channel means from -0.2")
    assert len(picture.plotly["data"]) == 4


@pytest.mark.parametrize(
    ("bits", "told"),
    [([4, 8, 8], "1 of 3 steps get 4 bits, from step 0 to step 0; the others get 8."),
     ([8, 8, 8], "0 of 3 steps get 4 bits; the others get 8."),
     ([4, 8, 4], "2 of 3 steps get 4 bits, all between step 0 and step 2; the others get 8.")],
)  # fmt: skip
def test_chosen_bits_are_told(bits: list[int], told: str) -> None:
    ratios = {"few": [9.0, 5.0, 2.0], "many": [20.0, 9.0, 4.0], "forward": [0.1, 1.0, 9.0]}
    frame = pd.DataFrame({"step": range(3), "timestep": [999, 500, 1], **ratios, "bits": bits})
    assert step_bits(frame).sentence == told
    frame["bits"] = 6
    assert "3 of 3 steps get 6 bits" in step_bits(frame, (6, 8)).sentence


def refuse() -> None:
    raise InvalidInputError("no such thing")


def test_a_refusal_is_told_and_a_success_is_none() -> None:
    assert tables.refusal(refuse) == "InvalidInputError: no such thing"
    with pytest.raises(InvalidInputError, match="Nothing was refused"):
        tables.refusal(lambda: 1)


@pytest.mark.parametrize("key", ["bias", "slope", "equal", "none"])
def test_the_question_knows_every_outcome(key: str) -> None:
    assert explore.question(key).correct == key
