"""Skylines, the decider axis, tables; explorers of the shortcuts notebook at every setting."""

import pandas as pd
import pytest
import torch
from explorer_cases import presets_move_the_picture, settings_have_sentences_of_their_own

from dqlab.errors import InvalidInputError
from dqlab.phenomena import bimodal_shortcuts as measured
from dqlab.phenomena.ledger import Claim
from dqlab.phenomena.shortcuts import Shortcut, synthetic_gain
from dqlab.phenomena.stored import Stored
from dqlab.show import bimodal_shortcuts as explore
from dqlab.show.deciders import decider
from dqlab.show.skylines import skyline
from dqlab.show.tables import ledger_table, table


def shortcut(name: str = "up_blocks.0.resnets.0.conv_shortcut") -> Shortcut:
    x = torch.rand(500, 10) * 2 - 1
    return Shortcut(name, (6, 4), x.amin(0), x.amax(0), x, torch.randn(5, 10), (1.0, 1.0))


FOUND = [shortcut(), shortcut("up_blocks.1.resnets.0.conv_shortcut")]
FACTORS, PAIRS = (1, 64, 128), ((4, 8), (4, 4))


def powers(**setting) -> pd.DataFrame:
    rows = [(k, 999.0, seed, 1.0, 0.01 * (1 + seed)) for k in range(2) for seed in range(3)]
    frame = pd.DataFrame(rows, columns=["step", "t", "seed", "signal", "noise"])
    return frame.assign(**setting)


def results() -> Stored:
    sweep = [powers(factor=c, split=split) for c in FACTORS for split in (False, True)]
    ladder = [
        powers(weights=w, activations=a, rung=name) for w, a in PAIRS for name in measured.RUNGS
    ]
    ledger = {
        "method": "rtn", "weights": 4, "activations": 8, "db": 20.0, "db_low": 19.0,
        "db_high": 21.0, "mse": 0.001, "mse_low": 0.0005, "mse_high": 0.002, "garment": 0.9,
        "colour": 1.0, "background": 1.0, "kilobytes": 700.0, "gigabitops": 3.2,
    }  # fmt: skip

    def made(*shape: int) -> torch.Tensor:
        return torch.randint(256, (*shape, 2, 3, 8, 8), dtype=torch.uint8)

    tensors = {
        "exact": made(), "sweep": made(len(FACTORS), 2),
        "ladder": made(len(PAIRS), len(measured.RUNGS)),
    }  # fmt: skip
    frames = {"sweep": pd.concat(sweep), "ladder": pd.concat(ladder)}
    ledger = pd.DataFrame([ledger | {"activations": a} for _, a in PAIRS])
    return Stored(frames | {"ledger": ledger}, tensors, {})


MAKERS = {
    "skyline": lambda: explore.skyline_explorer(FOUND),
    "combs": lambda: explore.comb_explorer(FOUND),
    "decider": lambda: explore.decider_explorer(synthetic_gain([0.5, 1.0, 64.0]), FOUND),
    "sweep": lambda: explore.sweep_explorer(results()),
    "ladder": lambda: explore.ladder_explorer(results()),
}


@pytest.mark.parametrize("name", MAKERS)
def test_settings_have_a_sentence_of_their_own(name: str) -> None:
    settings_have_sentences_of_their_own(MAKERS[name]())


@pytest.mark.parametrize("name", MAKERS)
def test_presets_move_the_picture(name: str) -> None:
    presets_move_the_picture(MAKERS[name]())


def test_the_skyline_says_how_many_levels_the_narrower_part_keeps() -> None:
    natural, strong = (explore.skyline_of(FOUND[0], c).sentence for c in (1, 128))
    assert "natural" in natural
    assert "part 25" in natural  # 250 or more of 256
    assert "injected, skip × 128" in strong
    assert any(f"the hidden part {n} of 256" in strong for n in (2, 3))


def test_a_skyline_wants_parts_that_make_up_the_tensor() -> None:
    with pytest.raises(InvalidInputError, match="do not make a skyline of 10 channels"):
        skyline(torch.ones(10), (4, 4), ("a", "b"), "words")


def test_the_decider_axis_holds_all_its_points() -> None:
    curve = pd.DataFrame({"ratio": [0.5, 1.0, 2.0], "gain": [4.0, 0.0, 4.0]})
    ours = pd.DataFrame({"ratio": [1.0, 1.5], "gain": [0.1, 2.0]})
    picture = decider(curve, {"ours": ours}, "words", axes=("r", "g"), quoted={"paper": 200.0})
    xs = [x for trace in picture.plotly["data"] for x in trace["x"]]
    assert {0.5, 2.0, 1.5, 200.0} <= set(xs)
    assert {"paper", "ours"} <= {note["text"] for note in picture.plotly["layout"]["annotations"]}
    hollow = [
        t for t in picture.plotly["data"] if t.get("marker", {}).get("symbol") == "circle-open"
    ]
    assert [t["x"] for t in hollow] == [[200.0]]


def test_the_injected_points_are_named_so() -> None:
    curve = synthetic_gain([1.0, 64.0])
    assert "(natural)" in explore.decider_of(curve, FOUND, 1).sentence
    assert "(injected)" in explore.decider_of(curve, FOUND, 64).sentence


def test_tables_say_in_words_what_they_show() -> None:
    gains = measured.ladder_gains(results().frames["ladder"])
    ladder = explore.ladder_table(gains)
    assert ladder.words.count("\n") == len(gains)
    assert "W4A4 | + split | " in ladder.words
    assert "no clear gain" in ladder.words
    assert "Not measured" not in ladder.words
    fewer = gains[(gains["rung"] != measured.LAST) | (gains["activations"] == 8)]
    assert "Not measured: + reconstruction at W4A4." in explore.ladder_table(fewer).words
    ledger = ledger_table(results().frames["ledger"])
    row = "20.0 [19.0, 21.0] | 1.00e-03 [5.00e-04, 2.00e-03] | 90 % / 100 % | 700 | 3.2"
    assert f"W4A8 | rtn | {row}" in ledger.words
    claim = Claim("split helps", "", 0.1, -0.2, 0.4, "dB", 1.0)
    assert "does not reproduce here" in explore.claims_table({"a": claim}).words


def test_cells_are_escaped_and_links_are_links() -> None:
    page = table("a < b", ("x",), [("[1.2.ipynb]",), ("<b>",)])
    assert '<a href="1.2.ipynb">1.2.ipynb</a>' in page.html
    assert "&lt;b&gt;" in page.html
    assert page.words == "a < b\n[1.2.ipynb]\n<b>"


@pytest.mark.parametrize("key", ["nothing", "quantized", "both sides"])
def test_the_question_knows_every_outcome(key: str) -> None:
    assert explore.question(key).correct == key
