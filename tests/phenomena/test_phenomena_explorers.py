"""Explorers, questions and tables of the first notebook, every setting of each."""

import itertools

import pandas as pd
import pytest
import torch

from dqlab.errors import UnknownNameError
from dqlab.phenomena import chain
from dqlab.show import charts, error_curves, questions, start_here
from dqlab.show.bundle import Picture
from dqlab.show.explorer import Explorer, Frame

BITS = (8, 4)


def timeline(count: int = 3) -> pd.DataFrame:
    return pd.DataFrame({"step": range(count), "timestep": [999, 500, 49][:count]})


def bits_explorer() -> Explorer:
    pairs = [(0, 0), *itertools.product(BITS, BITS)]
    return start_here.bits_explorer({p: torch.rand(5, 3, 8, 8) for p in pairs}, BITS)


def range_explorer() -> Explorer:
    wide = timeline().assign(site="wide", low=[-1.0, -2, -3], high=[1.0, 2, 3])
    steady = timeline().assign(site="steady", low=-1.0, high=1.0)
    return start_here.range_explorer(pd.concat([wide, steady]), ["wide", "steady"])


def step_explorer() -> Explorer:
    errors = timeline().assign(error=[0.3, 0.2, 0.1], seed=0)
    return start_here.step_explorer(torch.rand(4, 3, 8, 8), torch.rand(3, 2, 3, 8, 8), errors)


MAKERS = {
    "bits": bits_explorer,
    "levels": lambda: start_here.levels_explorer(torch.randn(2000)),
    "clip": lambda: start_here.clip_explorer(torch.randn(5000)),
    "steps": step_explorer,
    "ranges": range_explorer,
    "granularity": lambda: start_here.granularity_explorer(torch.randn(40, 8, 3, 3), 4),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_setting_computes_and_says_something(name: str) -> None:
    explorer = MAKERS[name]()
    said = set()
    for params in explorer.grid():
        data = explorer.compute(**params)
        said.add(explorer.sentence(data) if explorer.sentence else str(sorted(params.items())))
    assert len(said) >= 2
    picture, words = explorer.frame(explorer.presets[explorer.start])
    assert isinstance(picture, Picture)
    assert words


@pytest.mark.parametrize("name", MAKERS)
def test_presets_are_drawn_and_controls_move(name: str) -> None:
    explorer = MAKERS[name]()
    frame = Frame(explorer)
    pictures = set()
    for preset in explorer.presets:
        frame.go_to(preset)
        pictures.add(frame.image.value)
        assert frame.setting() == explorer.presets[preset]
    assert len(pictures) == len(explorer.presets)


def test_seeds_are_shown_with_when_they_settle(pipe, run) -> None:
    states, _ = run
    order = states.seed.argsort(stable=True)
    rows = [(s, a, 1) for s in (0, 1) for a in ("garment", "colour")]
    settled = pd.DataFrame(rows, columns=["seed", "attribute", "step"])
    explorer = start_here.seed_explorer(states[order], pipe.scheduler, settled)
    picture, words = explorer.frame({"seed": 1})
    assert words == "Seed 1 keeps its garment from step 1, colour from step 1."
    assert picture.sentence == words
    assert set(chain.HEADS) >= {"garment", "colour"}


def test_more_bits_are_closer_in_the_sentence() -> None:
    explorer = start_here.levels_explorer(torch.randn(5000))
    error = [explorer.compute(b, 1.0, 0)["facts"]["power"] for b in (2, 4, 8)]
    assert error == sorted(error, reverse=True)


def test_a_range_read_at_one_step_misses_the_others() -> None:
    explorer = range_explorer()
    assert explorer.compute("wide", "all steps")["static"] == (-3, 3)
    assert explorer.compute("wide", "first step")["static"] == (-1, 1)
    assert "cuts off 67 %" in explorer.frame({"site": "wide", "source": "first step"})[1]


@pytest.mark.parametrize("scene", questions.scenes())
def test_every_answer_may_turn_out_right(scene: int) -> None:
    keys = list(questions._ASKED[scene][1])
    for key in keys:
        asked = questions.question(scene, key)
        assert asked.answer().startswith(f"Answer {key}")
        for other in keys:
            assert asked.why[key] in asked.verdict(other)


def test_a_scene_without_a_question_says_so() -> None:
    with pytest.raises(UnknownNameError, match="Scene 1"):
        questions.question(1, "A")
    assert questions.nearest(4.1, {"A": 0, "B": 1, "C": 4}) == "C"


def test_charts_carry_their_sentence_and_their_data() -> None:
    frame = timeline().assign(series="rtn", error=[0.3, 0.2, 0.1])
    picture = charts.lines(
        frame, "It falls.", x="step", y="error", steps=True, log=True, axes=("", "error")
    )
    assert picture.sentence == "It falls."
    assert picture.plotly["data"][0]["y"] == [0.3, 0.2, 0.1]
    falling = charts.lines(
        frame, "Noise first.", x="timestep", y="error", falling=True, at=(500, "here"),
        axes=("t", "error"),
    )  # fmt: skip
    assert falling.plotly["layout"]["xaxis"]["range"] == [999, 49]
    assert any(note["text"] == "here" for note in falling.plotly["layout"]["annotations"])


def test_points_are_named_and_names_keep_apart() -> None:
    frame = pd.DataFrame({"x": [1.0, 1.01, 10], "y": [1.0, 1.0, 5], "name": ["a", "b", "c"]})
    picture = charts.points(
        frame, "Three.", x="x", y="y", label="name", axes=("x", "y"), highlight=["a"], log=True
    )
    notes = {n["text"]: n for n in picture.plotly["layout"]["annotations"]}
    places = [(notes[n]["xshift"], notes[n]["yshift"]) for n in "ab"]
    assert places[0] != places[1]
    assert notes["c"]["x"] == 1.0


def test_a_light_chart_is_smaller_and_says_the_same() -> None:
    frame = timeline().assign(series="rtn", error=[0.3, 0.2, 0.1])
    full = error_curves(frame)
    less = charts.light(full)
    assert len(less.png) < len(full.png)
    assert (less.sentence, less.size, less.plotly) == (full.sentence, full.size, full.plotly)


def test_tables_list_every_paper_and_only_notebooks_that_exist() -> None:
    table = start_here.papers_table()
    assert table.html.count("<tr>") == 28
    assert "PTQD" in table.words
    found = start_here.categories_table()
    assert found.words.count("\n") == 10
    assert ("to come" in found.words) or found.html.count("<a href=") == 10
