"""Every drawing function draws, and its title is computed from the data it draws."""

import io

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image

from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.show import (
    Canvas,
    bits_map,
    comb,
    db_over_steps,
    error_curves,
    film_strip,
    image_grid,
    layer_step_map,
    range_ribbon,
)
from dqlab.show.combs import comb_facts
from dqlab.show.panel import spread, tick_picks
from dqlab.show.strips import even_picks, paired_rms, signed_difference

STEPS = list(range(1, 11))
TIMES = [1000 - 100 * s for s in STEPS]
GRID = np.linspace(-3, 3, 16)


def sound(picture):
    """The PNG has its size at two pixels per CSS pixel, fits a page; plotly accepts the twin."""
    image = Image.open(io.BytesIO(picture.png)).convert("RGBA")
    width, height = picture.size
    assert image.size == (2 * width, 2 * height)
    assert width <= 960
    assert image.getpixel((width, 2 * height - 1))[3] == 0
    if picture.plotly is not None:
        twin = go.Figure(picture.plotly)
        assert (twin.layout.width, twin.layout.height) == picture.size
        words = " ".join(a.text for a in twin.layout.annotations).replace("<br>", " ")
        assert picture.sentence in words
    return picture


def test_db_over_steps_names_the_gain(db_frame):
    picture = sound(db_over_steps(db_frame))
    assert picture.facts["mean_gain"] == pytest.approx(2, abs=0.2)
    assert picture.sentence.startswith("Method gains 2")
    worse = db_frame.assign(db=np.where(db_frame.series == "method", 1, db_frame.db))
    assert db_over_steps(worse).sentence.startswith("Method loses")


def test_db_over_steps_of_one_series_names_its_worst_step(db_frame):
    alone = db_frame[db_frame.series == "rtn"]
    picture = sound(db_over_steps(alone, spread="interval", condition="W4A4"))
    assert picture.facts["step"] == 10
    assert "step 10 (t = 0)" in picture.sentence


def test_given_intervals_are_drawn_as_they_are(db_frame):
    alone = db_frame[db_frame.series == "rtn"].drop_duplicates("step")
    given = alone.assign(low=alone.db - 3, high=alone.db + 5)
    twin = sound(db_over_steps(given, spread="given")).plotly
    bars = next(trace["error_y"] for trace in twin["data"] if "error_y" in trace)
    assert bars["arrayminus"] == pytest.approx([3] * len(alone), rel=1e-3)
    assert bars["array"] == pytest.approx([5] * len(alone), rel=1e-3)


def test_shared_limits_are_kept(db_frame):
    twin = db_over_steps(db_frame, limits=(0, 40)).plotly
    assert twin["layout"]["yaxis"]["range"] == [0, 40]


def test_error_curves_are_logarithmic_and_name_the_ratio(db_frame):
    frame = db_frame.assign(error=np.where(db_frame.series == "rtn", 0.08, 0.02))
    picture = sound(error_curves(frame))
    assert "4 times below plain rounding" in picture.sentence
    assert picture.plotly["layout"]["yaxis"]["type"] == "log"
    assert "no gain" in error_curves(frame.assign(error=0.1)).sentence


def test_error_curves_refuse_values_without_a_logarithm(db_frame):
    with pytest.raises(InvalidInputError, match="above zero"):
        error_curves(db_frame.assign(error=-1.0))


def test_range_ribbon_says_what_a_static_range_does(range_frame):
    assert "3 times wider at step 10 than at step 1" in sound(range_ribbon(range_frame)).sentence
    fit = sound(range_ribbon(range_frame, (-1.5, 3.0)))
    # At the last step 4.5 of a range 9 wide lie inside; at the first 3 of the static 4.5 are used.
    assert fit.facts["cut"] == pytest.approx(0.5)
    assert fit.facts["unused"] == pytest.approx(1 / 3)
    clipped = range_frame.assign(clipped=np.linspace(0.31, 0, 10))
    assert range_ribbon(clipped, (-1.5, 3)).sentence == (
        "A static range clips 31 % of the values at step 1 (t = 900)."
    )


def test_comb_counts_idle_levels():
    # 990 values on the two middle levels, 10 on the top one: 13 empty levels and that one idle.
    values = np.concatenate([np.full(495, GRID[7]), np.full(495, GRID[8]), np.full(10, GRID[15])])
    picture = sound(comb(values, GRID, name="4-bit min-max"))
    assert picture.sentence == (
        "A 4-bit min-max grid spends 14 of its 16 levels on 1 % of the values."
    )
    assert "uses all" in comb(np.repeat(GRID, 10), GRID).sentence


def test_comb_measures_clipping_and_step():
    facts = comb_facts(torch.tensor([-9.0, 0.1, 0.2, 3.1]), GRID)
    assert facts["clipped"] == pytest.approx(0.25)
    assert facts["step"] == pytest.approx(0.4)
    picture = sound(comb([-9.0, 0.1, 0.2, 3.1], GRID, name="int4", log=True))
    assert picture.sentence.startswith("An int4 grid clips 25 % of the values")


def test_comb_compares_grids_of_any_format():
    values = np.random.default_rng(0).normal(size=500)
    picture = sound(comb(values, {"4-bit": GRID, "log2-4": [-2, -1, -0.5, 0, 0.5, 1, 2]}))
    assert set(picture.facts) == {"4-bit", "log2-4"}
    sound(comb(np.ones(5), [0.0, 1.0]))


def test_comb_refuses_empty_nan_and_single_levels():
    for values, levels, words in (([], GRID, "no values"), ([np.nan], GRID, "NaN"),
                                  ([1.0], [0.0], "two levels")):  # fmt: skip
        with pytest.raises(InvalidInputError, match=words):
            comb(values, levels)


def test_layer_map_finds_the_worst_place(layer_frame):
    picture = sound(layer_step_map(layer_frame))
    assert (picture.facts["layer"], picture.facts["step"]) == ("up.0", 10)
    assert picture.facts["branch"] == "up"
    assert picture.plotly["layout"]["yaxis"]["ticktext"] == ["conv_in", "down.0", "mid", "up.0"]
    high = layer_step_map(layer_frame, worst="high")
    assert (high.facts["layer"], high.facts["step"]) == ("conv_in", 1)


def test_layer_map_without_valley_and_signed(layer_frame):
    signed = layer_frame.drop(columns="branch").assign(value=layer_frame.value - 25)
    heat = next(t for t in sound(layer_step_map(signed, signed=True)).plotly["data"]
                if t["type"] == "heatmap")  # fmt: skip
    assert heat["zmin"] == -heat["zmax"]


def test_layer_map_refuses_unknown_words(layer_frame):
    with pytest.raises(InvalidInputError, match="sideways"):
        layer_step_map(layer_frame.assign(branch="sideways"))
    with pytest.raises(InvalidInputError, match="worst="):
        layer_step_map(layer_frame, worst="big")


def test_maps_refuse_two_values_in_a_cell(layer_frame, bits_frame):
    with pytest.raises(InvalidInputError, match="layer conv_in, step 1 has more than one"):
        layer_step_map(pd.concat([layer_frame, layer_frame]))
    with pytest.raises(InvalidInputError, match="weights 8, activations 8 has more than one"):
        bits_map(pd.concat([bits_frame, bits_frame]))


def test_bits_map_says_which_half_is_harder(bits_frame):
    picture = sound(bits_map(bits_frame))
    assert picture.facts == {"weights": 24.0, "activations": 27.0}
    assert picture.sentence.startswith("Activations are the harder half")
    swapped = bits_frame.rename(columns={"weights": "activations", "activations": "weights"})
    assert bits_map(swapped).sentence.startswith("Weights are the harder half")


def test_film_strip_says_where_the_error_enters(images):
    picture = sound(film_strip(images, STEPS, TIMES, 4.0))
    # The error grows evenly from 0 to 0.2: half of it is reached from step 6 on.
    assert picture.facts["end"] == pytest.approx(0.2)
    assert picture.facts["half_step"] == 6
    same = {"full_precision": images["rtn"], "rtn": images["rtn"]}
    assert "same picture" in film_strip(same, STEPS, TIMES).sentence


def test_film_strip_takes_tensors_and_unit_range(images):
    unit = {k: torch.tensor(v + 1) / 2 for k, v in images.items()}
    assert sound(film_strip(unit, STEPS, TIMES, value_range=(0, 1))).facts["end"] == (
        pytest.approx(0.1, rel=1e-5)
    )


def test_image_grid_takes_a_sentence(images):
    assert sound(image_grid(images, sentence="Told by whom it concerns.")).sentence.startswith(
        "Told"
    )


def test_image_grid_shows_first_or_worst(images):
    first = sound(image_grid(images, seeds=range(100, 110)))
    assert first.facts["worst_seed"] == 109
    assert "the first 7 seeds" in first.sentence
    worst = sound(image_grid(images, worst=True, count=3, difference_gain=8))
    assert "the 3 worst of 10" in worst.sentence
    assert first.png != worst.png


def test_strips_refuse_what_they_cannot_draw(images):
    with pytest.raises(InvalidInputError, match=r"\[N, 3, H, W\]"):
        film_strip({"a": np.zeros((3, 32, 32))}, [1], [0])
    with pytest.raises(InvalidInputError, match="same shape"):
        image_grid({**images, "rtn": images["rtn"][:2]})
    with pytest.raises(InvalidInputError, match="one per image"):
        film_strip(images, STEPS[:3], TIMES[:3])
    with pytest.raises(InvalidInputError, match="960 fit"):
        image_grid({"a": np.zeros((7, 3, 256, 256))})


def test_signed_difference_keeps_a_shift_of_hue():
    a = np.zeros((1, 3, 1, 1))
    b = np.array([0.3, -0.4, 0.1]).reshape(1, 3, 1, 1)
    assert signed_difference(b, a)[0, 0, 0] == pytest.approx(-0.4)
    assert paired_rms({"a": a, "b": b})[0] == pytest.approx(np.sqrt(0.26 / 3))


def test_even_picks_keep_both_ends():
    assert even_picks(20, 7)[0] == 0
    assert even_picks(20, 7)[-1] == 19
    assert even_picks(3, 7) == [0, 1, 2]


@pytest.mark.parametrize(
    ("total", "picks"),
    [(1, [0]), (2, [0, 1]), (10, [0, 2, 4, 6, 9]), (20, [0, 4, 8, 12, 16, 19])],
)
def test_ticks_keep_one_stride_and_both_ends(total, picks):
    assert tick_picks(total, 7) == picks


def test_labels_are_moved_apart_and_stay_inside():
    found = spread([50, 52, 51, 99], 10, 100)
    assert min(np.diff(sorted(found))) >= 10
    assert max(found) <= 100
    assert np.argsort(found, kind="stable").tolist() == [0, 2, 1, 3]


def test_frames_are_checked(db_frame):
    with pytest.raises(InvalidInputError, match="timestep missing"):
        db_over_steps(db_frame.drop(columns="timestep"))
    with pytest.raises(InvalidInputError, match="without rows"):
        db_over_steps(db_frame[:0])
    with pytest.raises(InvalidInputError, match="two timesteps"):
        db_over_steps(db_frame.assign(timestep=range(len(db_frame))))
    with pytest.raises(InvalidInputError, match="iqr"):
        db_over_steps(db_frame, spread="range")
    with pytest.raises(UnknownNameError, match="no role"):
        db_over_steps(db_frame, roles={"rtn": "red"})


def test_a_page_is_960_px_wide():
    with pytest.raises(InvalidInputError, match="960"):
        Canvas(width=1200)
