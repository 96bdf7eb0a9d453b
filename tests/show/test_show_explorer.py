"""Explorers run on their whole grid without a kernel; widgets only connect the functions."""

import numpy as np
import pandas as pd
import pytest

from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.show import Control, Explorer, comb, db_over_steps
from dqlab.show.bundle import PLOTLY, WIDGET, is_quick
from dqlab.show.explorer import Frame

VALUES = np.linspace(-3, 3, 200)
CONTROLS = (
    Control("bits", "bits", (2, 3, 4), 3),
    Control("clip", "clip at", ("min-max", 2.0), kind="choice"),
    Control("log", "log axis", kind="switch"),
)
TITLE = "Where do the levels go?"
PRESETS = {"coarse": {"bits": 2}, "clipped": {"clip": 2.0}, "fine": {"bits": 4, "log": True}}


class Bench:
    """Counts calls, so that a test sees how often a setting was computed."""

    def __init__(self):
        self.calls = 0

    def compute(self, bits, clip, log, progress=None):
        self.calls += 1
        if progress:
            progress(0.5)
        end = 3.0 if clip == "min-max" else clip
        return {"levels": np.linspace(-end, end, 2**bits), "bits": bits, "log": log}

    def draw(self, data):
        return comb(VALUES, data["levels"], name=f"{data['bits']}-bit", log=data["log"], width=480)


def explorer(bench, **options):
    def count(data):
        return f"{len(data['levels'])} levels."

    return Explorer(TITLE, CONTROLS, bench.compute, bench.draw, count, presets=PRESETS, **options)


@pytest.fixture
def bench():
    return Bench()


def test_the_full_grid_runs_headless(bench):
    lab = explorer(bench)
    settings = list(lab.grid())
    assert len(settings) == 3 * 2 * 2
    words = {lab.frame(setting)[1] for setting in settings}
    assert words == {"4 levels.", "8 levels.", "16 levels."}
    assert bench.calls == len(settings)


def test_a_setting_is_computed_once(bench):
    lab = explorer(bench)
    setting = next(lab.grid())
    assert not lab.known(setting)
    assert lab.frame(setting) is lab.frame(dict(setting))
    assert lab.known(setting)
    assert bench.calls == 1


def test_it_reads_without_a_kernel(bench):
    data, metadata = explorer(bench)._repr_mimebundle_()
    assert set(data) == {WIDGET, "image/png", "text/plain"}
    assert PLOTLY not in data
    assert data["text/plain"] == (
        "Where do the levels go?\ncoarse: 4 levels.\nclipped: 8 levels.\nfine: 16 levels."
    )
    assert metadata["image/png"]["alt"] == data["text/plain"]


def test_the_picture_speaks_when_no_sentence_is_given(bench):
    lab = Explorer("t", CONTROLS, bench.compute, bench.draw, presets=PRESETS)
    assert lab.frame(lab.presets["coarse"])[1].startswith("A 2-bit grid")


def test_controls_presets_and_reset_move_the_picture(bench):
    frame = Frame(explorer(bench, start="clipped"))
    assert frame.setting() == {"bits": 3, "clip": 2.0, "log": False}
    before = frame.image.value
    frame.knobs["bits"].value = 4
    assert "16 levels" in frame.notice.value
    assert frame.image.value != before
    frame.presets["coarse"].click()
    assert frame.setting() == {"bits": 2, "clip": "min-max", "log": False}
    assert "4 levels" in frame.notice.value
    frame.reset.click()
    assert frame.image.value == before


def test_a_preset_draws_once_however_many_controls_it_moves(bench):
    frame = Frame(explorer(bench, stops=["coarse", "clipped"]))
    calls = bench.calls
    frame.presets["fine"].click()
    assert bench.calls == calls + 1


def test_the_frame_keeps_its_height_and_tells_alt_text(bench):
    frame = Frame(explorer(bench))
    right = frame.box.children[1].children[1]
    assert right.layout.height.endswith("px")
    assert 'alt="A 2-bit grid' in frame.image.value
    assert all(not k.continuous_update for k in frame.knobs.values() if hasattr(k, "readout"))
    assert 'aria-live="polite"' in frame.notice.value


def test_slow_explorers_wait_for_the_run_button(bench):
    frame = Frame(explorer(bench, seconds=5, stops=["coarse", "clipped"]))
    calls = bench.calls
    frame.presets["fine"].click()
    assert bench.calls == calls
    assert "Press run" in frame.notice.value
    assert frame.run.description == "Run (about 5 s)"
    frame.run.click()
    assert bench.calls == calls + 1
    assert frame.bar.value == 0.5
    assert "16 levels" in frame.notice.value


def test_an_error_is_told_in_the_sentences_place(bench):
    def compute(**setting):
        if setting["bits"] == 4:
            raise InvalidInputError("Layer conv_out has no range at step 3: calibrate it first.")
        return bench.compute(**setting)

    lab = Explorer(
        "t", CONTROLS, compute, bench.draw, presets=PRESETS, stops=["coarse", "clipped"]
    )
    frame = Frame(lab)
    frame.knobs["bits"].value = 4
    assert "conv_out" in frame.notice.value


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda b: Control("bits", "bits", (2, 3), 5), InvalidInputError, "default 5"),
        (lambda b: Control("x", "x", (1,), kind="dial").widget(), UnknownNameError, "dial"),
        (lambda b: explorer(b, start="none"), InvalidInputError, "'none', which is no preset"),
        (lambda b: explorer(b, stops=["coarse"]), InvalidInputError, "2 to 5 stops"),
        (lambda b: Explorer("t", CONTROLS, b.compute, b.draw, presets={"a": {"bits": 9}}),
         InvalidInputError, "bits=9"),
        (lambda b: Explorer("t", CONTROLS, b.compute, b.draw, presets={"a": {"size": 9}}),
         InvalidInputError, "'bits', 'clip', 'log'"),
    ],
)  # fmt: skip
def test_impossible_explorers_are_refused(bench, build, error, words):
    with pytest.raises(error, match=words):
        build(bench)


def test_live_pictures_are_drawn_quickly_and_stored_ones_with_care() -> None:
    pictures = []

    def draw(level: int) -> object:
        frame = pd.DataFrame(
            {"step": [0, 1], "timestep": [999, 499], "series": "rtn", "db": level}
        )
        pictures.append(db_over_steps(frame, spread="none"))
        return pictures[-1]

    controls = [Control("level", "level", (1, 2, 3))]
    presets = {"one": {"level": 1}, "two": {"level": 2}}
    explorer = Explorer("Quick", controls, lambda level: level, draw, presets=presets)
    Frame(explorer).knobs["level"].value = 3
    *kept, live = pictures
    assert len(kept) == 2 and all(p.plotly is not None for p in kept)
    assert live.plotly is None
    assert live.size == kept[0].size
    assert not is_quick()
