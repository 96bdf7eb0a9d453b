"""What an output consists of, and that the same data gives the same bytes."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.show import ROLES, Question, badge, db_over_steps, film_strip, mark, marker, source
from dqlab.show.bundle import (
    PLOTLY,
    encode_png,
    fewer_colours,
    number,
    percent,
    round_significant,
    stack,
)


def bundle(thing):
    return thing._repr_mimebundle_()


def test_a_picture_serves_live_page_and_screen_reader(db_frame):
    picture = db_over_steps(db_frame)
    data, metadata = bundle(picture)
    assert set(data) == {"text/plain", "image/png", PLOTLY}
    assert data["text/plain"] == picture.sentence == repr(picture)
    # The plotly extension takes the size of its stand-in from the pixels.
    stand_in = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert stand_in.size == picture.size
    assert metadata["image/png"] == {"width": 760, "height": 400, "alt": picture.sentence}
    json.dumps(data)


def test_a_picture_without_a_twin_keeps_its_sharp_pixels(images):
    picture = film_strip(images, range(1, 11), range(10))
    data, _ = bundle(picture)
    assert set(data) == {"text/plain", "image/png"}
    assert base64.b64decode(data["image/png"]) == picture.png


def test_the_html_figure_carries_alt_and_caption(db_frame):
    picture = db_over_steps(db_frame[db_frame.series == "rtn"])
    assert f'alt="{picture.sentence}"' in picture.html()
    assert f"<figcaption>{picture.sentence}</figcaption>" in picture.html()


def test_same_data_same_bytes(db_frame, images):
    first, second = db_over_steps(db_frame), db_over_steps(db_frame.copy())
    assert first.png == second.png
    assert first.plotly == second.plotly
    strips = [film_strip(images, range(1, 11), range(10)) for _ in range(2)]
    assert strips[0].png == strips[1].png


def test_png_has_no_date_and_stays_small(db_frame, images):
    picture = db_over_steps(db_frame)
    assert Image.open(io.BytesIO(picture.png)).info.keys() <= {"transparency"}
    assert len(picture.png) <= 60_000
    assert len(film_strip(images, range(1, 11), range(10)).png) <= 90_000  # pure noise, the worst


def test_plotly_numbers_are_short(db_frame):
    def numbers(value):
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                yield from numbers(part)
        elif isinstance(value, float):
            yield value

    twin = db_over_steps(db_frame).plotly
    assert all(float(f"{v:.4g}") == v for v in numbers(twin))
    noisy = db_frame.assign(db=db_frame.db * (1 + 1e-9))
    assert db_over_steps(noisy).plotly["data"] == twin["data"]


def test_rounding_reaches_every_container():
    given = {"a": (1.23456, np.float32(2.0)), "b": np.array([np.nan, 1e-9]), "c": "x", "d": 3}
    assert round_significant(given) == {"a": [1.235, 2.0], "b": [None, 1e-9], "c": "x", "d": 3}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (0.3142, "0.31"),
        (1234, "1200"),
        (2.0, "2"),
        (1e-7, "1.0e-07"),
        (-0.054, "-0.054"),
    ],
)
def test_numbers_for_sentences(value, words):
    assert number(value) == words


def test_percent_and_infinity():
    assert percent(0.314) == "31 %"
    assert number(float("inf")) == "inf"


def test_stack_puts_pictures_below_one_another(db_frame):
    picture = db_over_steps(db_frame)
    sheet = stack([picture, picture], "two", gap=10)
    assert sheet.size == (760, 810)
    assert Image.open(io.BytesIO(sheet.png)).size == (1520, 1620)
    with pytest.raises(InvalidInputError, match="no picture"):
        stack([], "none")


def test_a_thin_line_keeps_its_colour_beside_many_shades():
    shades = np.arange(40_000).reshape(200, 200, 1) // 20 % 256 * [1, 1, 1, 0] + [0, 0, 0, 255]
    shades[100] = [0, 114, 178, 255]
    drawn = encode_png(Image.fromarray(shades.astype(np.uint8)), 16)
    again = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGBA"))
    assert (again[100] == [0, 114, 178, 255]).all()
    assert abs(again.astype(int) - shades).max() <= 16


def test_few_colours_are_kept_exactly():
    pixels = np.random.default_rng(0).integers(0, 2, (30, 30, 4)).astype(np.uint8) * 255
    again = Image.open(io.BytesIO(encode_png(Image.fromarray(pixels), 16))).convert("RGBA")
    assert np.array_equal(np.asarray(again), pixels)


@pytest.mark.parametrize("name", list(ROLES))
def test_every_role_keeps_its_colour_in_both_sizes(db_frame, name):
    picture = db_over_steps(db_frame[db_frame.series == "rtn"], roles={"rtn": name})
    look = np.array([int(ROLES[name].colour[i : i + 2], 16) for i in (1, 3, 5)])
    stand_in = base64.b64decode(bundle(picture)[0]["image/png"])
    for png in (picture.png, stand_in):
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)
        solid = pixels[pixels[..., 3] == 255][:, :3]
        assert abs(solid - look).max(axis=1).min() <= 6


def test_fewer_colours_keeps_few_colours_exactly():
    pixels = np.zeros((2, 3, 8, 8, 3))
    pixels[0, ..., 0] = 1.0
    assert np.array_equal(fewer_colours(pixels), pixels)


def test_saving(tmp_path, db_frame):
    picture = db_over_steps(db_frame)
    assert picture.save(tmp_path / "a.png").read_bytes() == picture.png


def test_marks_in_words_and_html():
    assert mark(6.2, "quoted", "PTQD, table 3") == "6.2 (quoted: PTQD, table 3)"
    assert mark("1.2 ms", "simulated") == "1.2 ms (simulated)"
    assert len({badge("quoted", "a"), badge("measured", "a"), badge("simulated", "a")}) == 3
    assert "&lt;b&gt;" in badge("quoted", "<b>")


def test_markers_of_the_three_kinds_differ():
    look = ROLES["method"]
    kinds = {k: marker(k, look) for k in ("measured", "simulated", "quoted")}
    assert kinds["quoted"]["markerfacecolor"] == "#FFFFFF"
    assert kinds["measured"]["fillstyle"] != kinds["simulated"]["fillstyle"]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: mark(1, "quoted"), InvalidInputError, "the paper"),
        (lambda: badge("measured"), InvalidInputError, "machine kind"),
        (lambda: mark(1, "guessed"), UnknownNameError, "measured, simulated, quoted"),
        (lambda: marker("guessed", ROLES["rtn"]), UnknownNameError, "guessed"),
    ],
)
def test_marks_without_their_source_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_source_shows_the_installed_code():
    data, _ = bundle(source(percent))
    assert data["text/plain"].startswith("# dqlab.show.bundle.percent\ndef percent(share: float)")
    assert "<script" not in data["text/html"]
    assert "percent" in data["text/html"]


def test_source_without_docstring_keeps_the_body():
    words = source(percent, docstring=False).words
    assert '"""' not in words
    assert words.endswith('return f"{number(100 * share)} %"')
    assert "class Question" in source(Question, docstring=False).words


def test_source_refuses_what_has_none():
    with pytest.raises(InvalidInputError, match="no Python source"):
        source(len)
