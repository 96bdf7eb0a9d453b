"""Explorers, question and tables of the notebook on time information, at every setting."""

import pandas as pd
import pytest
import torch
from explorer_cases import presets_move_the_picture, settings_have_sentences_of_their_own
from torch import nn

from dqlab.methods.channels import ChannelRange
from dqlab.phenomena.clock import Channels, grid_table
from dqlab.phenomena.ledger import Claim
from dqlab.show import time_information as explore

BLOCKS = ("down_blocks.0.resnets.0", "up_blocks.0.resnets.0")


def perceived(away: float) -> pd.DataFrame:
    t = torch.linspace(999, 49, 20).tolist()
    parts = [
        pd.DataFrame({"layer": name, "t": t, "perceived": [v - away * (i > 9 + b) for i, v in
                                                           enumerate(t)]})
        for b, name in enumerate(BLOCKS)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


TABLES = {
    (bits, arm): perceived(away)
    for bits in (4, 2)
    for arm, away in ((explore.NEAREST, 8.0 / bits), (explore.LEARNED, 0.0))
}
U = torch.exp2(-torch.arange(12.0)[None] + torch.arange(16.0)[:, None] / 8)


def scattered() -> Channels:
    ranges = {}
    for name, widest in (("a", 8.0), ("b", 2.0)):
        high = torch.linspace(0.1, widest, 6)
        ranges[name] = ChannelRange(name, -0.2 * high, high)
    return Channels(nn.Identity(), ranges, {}, {}, None)


MAKERS = {
    "clock": lambda: explore.clock_explorer(TABLES),
    "grids": lambda: explore.grid_explorer(U),
    "channels": lambda: explore.channel_explorer(scattered()),
}


@pytest.mark.parametrize("name", MAKERS)
def test_settings_have_a_sentence_of_their_own(name: str) -> None:
    settings_have_sentences_of_their_own(MAKERS[name]())


@pytest.mark.parametrize("name", MAKERS)
def test_presets_move_the_picture(name: str) -> None:
    presets_move_the_picture(MAKERS[name]())


def test_the_clock_face_holds_the_diagonal() -> None:
    picture = explore.clock_face({explore.NEAREST: perceived(4.0)}, BLOCKS[0], "words")
    straight = [list(line["x"]) == list(line["y"]) for line in picture.plotly["data"]]
    assert set(straight) == {True, False}


def test_a_made_up_clock_is_read_right_until_half_the_way_to_the_next_step() -> None:
    """One step is 1; an error in a random direction of 64 lies mostly across."""
    curve = explore.made_up_clock().set_index("ratio")["gain"]
    assert (curve[curve.index <= 0.5] == 0).all()
    assert curve[64.0] > 50 and (curve.diff().dropna() >= -5).all()


def test_the_decider_names_what_it_shows() -> None:
    frame = pd.DataFrame({"layer": BLOCKS, "ratio": [0.2, 3.0], "mistaken": [0.0, 0.5]})
    words = explore.decider_chart({"ours, W4": frame}).sentence
    assert "1.6 times the distance" in words and "25 %" in words


def test_ranges_say_how_wide_one_range_must_be() -> None:
    frame = pd.DataFrame(
        {"layer": "u", "step": [0, 1], "timestep": [999.0, 500.0], "low": [-1.0, 0.0],
         "high": [3.0, 1.0]}
    )  # fmt: skip
    assert "is 4 wide; steps need 1 to 4" in explore.ranges_chart(frame, "u").sentence


def test_tables_say_in_words_what_they_show() -> None:
    grids = explore.grids_table(grid_table(U, (4, 6)))
    assert grids.words.count("\n") == 8 and "4 | uint4 | " in grids.words
    frame = pd.DataFrame(
        {"alpha": ["none", "1"], "db": [17.5, 22.2], "gain": [0.0, 4.7], "improved": [0.0, 1.0]}
    )
    assert "W8A4 | 1 | 22.2 dB | +4.7 dB | 100 %" in explore.alphas_table({"W8A4": frame}).words
    claim = Claim("TIAR helps", "", 0.1, -0.2, 0.4, "dB", 1.0)
    assert "does not reproduce here" in explore.claims_table("Claims.", {"a": claim}).words


def test_the_map_of_turns_shows_the_block_it_names() -> None:
    frame = pd.DataFrame(
        [(name, k, 999.0 - 50 * k, 1e-3 * (1 + b + k)) for b, name in enumerate(BLOCKS)
         for k in range(3)], columns=["layer", "step", "timestep", "away"],
    )  # fmt: skip
    lines = explore.turn_map(frame, "words").plotly["data"]
    named = {line["name"]: list(line["y"]) for line in lines if line.get("name")}
    assert named[explore.MOST][-1] == pytest.approx(4e-3)
    assert named[explore.MEAN][-1] == pytest.approx(3.5e-3)


def test_trajectories_say_where_they_end() -> None:
    rows = [(name, k, 999.0 - 50 * k, 10.0 ** -(i + 3) * k) for k in (1, 2)
            for i, name in enumerate(explore.ON_THE_WAY)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["series", "step", "timestep", "away"])
    words = explore.trajectory_chart(frame, 2).sentence
    assert "2 seeds" in words and "W4, nearest 2.0e-03, W4, TIAR 2.0e-04" in words


def test_the_ablation_names_both_parts() -> None:
    frame = pd.DataFrame([("tiar", "all", 22.5, 0.25, -0.1, 0.6)],
                         columns=["temporal", "scope", "db", "gain", "low", "high"])  # fmt: skip
    words = explore.ablation_table(frame).words
    assert "TIAR | by step everywhere | 22.5 dB | +0.25 dB [-0.10, +0.60]" in words


def test_clips_say_how_much_they_move() -> None:
    videos = torch.zeros(2, 8, 3, 8, 8)
    videos[:, -1] = 0.5
    assert "2 clips of 8 frames" in explore.clips(videos, [5, 6]).sentence
    assert "change by 0.5" in explore.clips(videos, [5, 6]).sentence


def test_headroom_names_the_worst_layers_first() -> None:
    frame = pd.DataFrame(
        [("a", "channel", 30.0), ("a", "tensor", 120.0), ("b", "channel", 12.0),
         ("b", "tensor", 56.0)], columns=["layer", "reach", "db"],
    )  # fmt: skip
    words = explore.headroom_table(frame).words.splitlines()
    assert words[1:] == ["b | 12.0 dB | 56.0 dB", "a | 30.0 dB | nothing clipped"]


@pytest.mark.parametrize("key", ["none", "few", "more"])
def test_the_question_knows_every_outcome(key: str) -> None:
    assert explore.question(key).correct == key
