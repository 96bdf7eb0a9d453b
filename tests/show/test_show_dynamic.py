"""Ridges, and the explorers, pictures and tables of the notebook on dynamic quantization."""

import pandas as pd
import pytest
import torch
from explorer_cases import presets_move_the_picture, settings_have_sentences_of_their_own

from dqlab.errors import InvalidInputError
from dqlab.methods.unet_dynamic.tdq import Grid
from dqlab.phenomena import dynamic_quantization as measured
from dqlab.phenomena import timed_ranges as tr
from dqlab.phenomena.ledger import Claim
from dqlab.phenomena.stored import Stored
from dqlab.show import dynamic_quantization as explore
from dqlab.show import timed_ranges as draw
from dqlab.show.ridges import ridges

T, PAIRS = 4, ((4, 8), (4, 4))
SITES = ("down_blocks.0.resnets.0.conv1.input", "mid_block.attentions.0.q", "conv_in.input")


def seen() -> tr.Timed:
    generator = torch.Generator().manual_seed(0)
    grow = torch.tensor([1.0, 2.0, 3.0, 5.0]).reshape(1, T, 1, 1)
    size = torch.tensor([1.0, 2.0, 0.5]).reshape(3, 1, 1, 1)
    x = torch.randn(3, T, 2, 200, generator=generator) * grow * size
    t = torch.tensor([999.0, 700.0, 400.0, 100.0])
    return tr.Timed(SITES, (Grid(4), Grid(4), Grid(8)), t, x, x.amin(3), x.amax(3), 8)


SEEN = seen()


def powers(**setting) -> pd.DataFrame:
    rows = [
        (k, 999.0 - 300 * k, seed, 1.0, 0.01 * (1 + seed)) for k in range(T) for seed in (0, 1)
    ]
    frame = pd.DataFrame(rows, columns=["step", "t", "seed", "signal", "noise"])
    return frame.assign(**setting)


def results() -> Stored:
    ledger = {"db": 20.0, "db_low": 19.0, "db_high": 21.0, "mse": 1e-3, "mse_low": 5e-4,
              "mse_high": 2e-3, "garment": 0.9, "colour": 1.0, "background": 1.0,
              "kilobytes": 700.0, "gigabitops": 3.2}  # fmt: skip
    rows = []
    for (w, a), name in ((p, n) for p in PAIRS for n in measured.SETTINGS):
        rows.append({"setting": name, "weights": w, "activations": a, **ledger})
        rows[-1]["db"] += len(rows)
    frames = [
        powers(weights=8, activations=4, setting=n) for n in ("min-max", "static", "network")
    ]
    gains = tr.time_table(SEEN).assign(**{"min-max": 15.0, "static": 18.0, "table": 18.5})
    kept = {
        "ledger": pd.DataFrame(rows), "powers": pd.concat(frames), "gains": gains,
        "sites": pd.DataFrame({"site": SITES[::-1]}),
    }  # fmt: skip
    shape = len(PAIRS), len(measured.SETTINGS), 2, 3, 8, 8
    tensors = {"exact": torch.randint(256, shape[2:], dtype=torch.uint8),
               "made": torch.randint(256, shape, dtype=torch.uint8),
               "table": torch.rand(3, T) + 0.1}  # fmt: skip
    return Stored(kept, tensors, {})


CURVE = pd.DataFrame({"ratio": [1.0, 8.0], "gain": [0.0, 3.5], "on_min_max": [4.3, 9.6]})
MAKERS = {
    "ridges": lambda: explore.ridge_explorer(SEEN),
    "combs": lambda: explore.comb_explorer(SEEN),
    "pictures": lambda: explore.picture_explorer(results()),
}


@pytest.mark.parametrize("name", MAKERS)
def test_settings_have_a_sentence_of_their_own(name: str) -> None:
    settings_have_sentences_of_their_own(MAKERS[name]())


@pytest.mark.parametrize("name", MAKERS)
def test_presets_move_the_picture(name: str) -> None:
    presets_move_the_picture(MAKERS[name]())


def test_ridges_lie_over_their_steps_with_band_and_ribbon() -> None:
    times = pd.DataFrame({"step": range(T), "timestep": [9, 6, 3, 0]})
    picture = ridges(SEEN.flat[0], times, "words", band=(-1.0, 1.0),
                     ribbon=([-1.0] * T, [1.0, 2.0, 3.0, 4.0]))  # fmt: skip
    filled = [t for t in picture.plotly["data"] if t.get("fill") == "toself"]
    ridge = [t for t in filled if t["fillcolor"].startswith("rgba(122")]
    assert [min(t["x"]) for t in ridge] == [0, 1, 2, 3]
    assert all(max(t["x"]) <= k + 0.93 for k, t in enumerate(ridge))
    words = {note["text"] for note in picture.plotly["layout"]["annotations"]}
    assert {"one range for all steps", "a range per step"} <= words
    with pytest.raises(InvalidInputError, match="for 4 steps; give one row a step"):
        ridges(SEEN.flat[0][:2], times, "words")


def test_the_ridges_say_how_far_off_one_range_is() -> None:
    tdq = explore.ridges_of(SEEN, SITES[0], "static", torch.full((T,), 0.5)).sentence
    assert "with TDQ's range no step has more than" in tdq
    told = explore.ridges_of(SEEN, SITES[0], "min-max", True).sentence
    assert told.startswith("down 0 res 0 conv1, 4 bits, one scale, min-max")
    assert "no step has more than" in told
    assert "no step" not in explore.ridges_of(SEEN, SITES[0], "static", False).sentence


def test_errors_name_where_both_parts_peak() -> None:
    assert "both ends lose" in draw.errors_of(SEEN, SITES[0]).sentence


def test_drift_is_drawn_for_both_models() -> None:
    table = tr.time_table(SEEN)
    picture = draw.drift_points({"ours": table, "other": table.assign(R=1.0)})
    assert "ours: 100 % of 3 sites have R > 1.5; other: 0 %" in picture.sentence


def test_a_sites_scales_are_held_against_the_best() -> None:
    best = tr.step_sizes(SEEN.of([SITES[0]]), "table")[0]
    at = [100.0, 250.0, 400.0, 700.0, 999.0]
    middle = (best[3] + best[2]) / 2
    exact = torch.stack([best[3], middle, best[2], best[1], best[0]])
    told = draw.scales_of_site(SEEN, SITES[0], exact, at).sentence
    assert "within 0 % of each step's best on average, and 0 % off" in told
    exact[1] *= 1.5
    told = draw.scales_of_site(SEEN, SITES[0], exact, at).sentence
    assert "within 0 % of each step's best on average, and 50 % off" in told


def test_the_map_holds_every_site_of_the_table() -> None:
    assert "Lowest" in explore.table_map(results()).sentence


def test_curves_compare_tdq_with_min_max() -> None:
    assert explore.step_curves(results().frames["powers"]).sentence.startswith("TDQ")


def test_tables_say_in_words_what_they_show() -> None:
    found = results()
    work = pd.DataFrame(
        {"site": list("abcde"), "values": [10, 20, 30, 40, 50], "rows": [0, 4, 0, 0, 0]}
    )
    told = explore.cost_rows(work, found.frames["ledger"], found.tensors["table"]).words
    assert "TDQ | 25.0 | 32.0 | 0 | 0 | 14" in told
    assert "at run time, per picture | 26.0 | 33.0 | 150 | 20 | 0" in told
    assert "at run time, per token | 27.0 | 34.0 | 130 | 32 | 0" in told
    assert "W4A8 | TDQ | 25.0" in explore.ledger_table(found.frames["ledger"]).words
    claim = Claim("it helps", "FID 4", 0.1, -0.2, 0.4, "dB", 1.0)
    assert "does not reproduce here" in explore.claims_table({"a": claim}).words
    rows = pd.DataFrame({"shape": ["4 layers"], "error": 0.01, "seen_db": 0.1, "held_out_db": 0.2})
    assert "4 layers | 0.010 | 0.10 | 0.20" in explore.ablation_table(rows).words


def test_the_decider_compares_with_either_kind_of_one_scale() -> None:
    gains = results().frames["gains"]
    for against, gain in (("static", "0.50"), ("min-max", "3.50")):
        told = explore.decider_of(CURVE, gains, against).sentence
        assert told.startswith(f"In place of {draw.NAMES[against]}, a scale per step gains {gain}")


def test_every_setting_has_a_name_of_its_own() -> None:
    assert {*measured.SETTINGS, *measured.TRAINED} == set(draw.NAMES)
    assert len(set(draw.NAMES.values())) == len(draw.NAMES)


@pytest.mark.parametrize("key", ["little", "some", "much"])
def test_the_question_knows_every_outcome(key: str) -> None:
    assert explore.question(key).correct == key
