"""Stored results: round trip, damage, the live comparison; and what start_here measures."""

import json

import pandas as pd
import pytest
import torch

from dqlab.errors import CheckpointError, MismatchError, UnknownNameError
from dqlab.methods.method import MOMENTS
from dqlab.methods.papers import categories, papers
from dqlab.phenomena import start_here, stored


@pytest.fixture
def kept(shipped):
    origin = {
        "model": "m", "model_hash": "ab", "date": "2026-01-01", "commit": "c",
        "seconds": 3.2, "machine": "x", "command": "python -m y",
    }  # fmt: skip
    frames = {"a": pd.DataFrame({"step": [0, 1], "db": [1 / 3, float("nan")]})}
    tensors = {"images": torch.arange(6, dtype=torch.uint8).reshape(2, 3)}
    stored.save(stored.results_dir("trial"), stored.Stored(frames, tensors, origin))
    return stored.results_dir("trial")


def test_a_round_trip_keeps_six_digits(kept) -> None:
    found = stored.load("trial")
    assert found.frames["a"]["db"][0] == 0.333333
    assert found.frames["a"]["db"].isna().tolist() == [False, True]
    assert found.tensors["images"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert "made 2026-01-01 at commit c" in str(found)
    assert not list(kept.glob("*.part"))


def test_what_is_missing_or_damaged_is_named(kept) -> None:
    with pytest.raises(CheckpointError, match=r"python -m dqlab\.phenomena\.start_here"):
        stored.load("start-here")
    (kept / stored.TENSORS).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="damaged"):
        stored.load("trial")
    (kept / stored.FRAMES).write_text(json.dumps({"provenance": {}}))
    with pytest.raises(CheckpointError, match="damaged"):
        stored.load("trial")


def test_a_live_number_may_differ_by_its_tolerance() -> None:
    words = stored.redo("SQNR", 14.8, 14.85, tolerance=0.1, unit="dB")
    assert words == "SQNR: 14.8 dB, computed again just now, within 0.1 dB."
    assert "0.0123, computed" in stored.redo("MSE", 0.01234, 0.0124, tolerance=0.05)
    for live in (15.0, float("nan")):
        with pytest.raises(MismatchError, match="regenerate"):
            stored.redo("SQNR", 14.8, live, tolerance=0.1, unit="dB")
    with pytest.raises(MismatchError, match="MSE: stored"):
        stored.redo("MSE", 0.01, 0.012, tolerance=0.1)


def test_pictures_survive_as_bytes() -> None:
    pictures = torch.rand(2, 3, 4, 4)
    again = stored.to_pictures(stored.to_bytes(pictures))
    assert float((again - pictures).abs().max()) <= 0.5 / 255 + 1e-6


def test_everything_is_measured(pipe, sampler, shipped, monkeypatch) -> None:
    monkeypatch.setattr(start_here, "BITS", (8, 4))
    plan = start_here.Plan(
        calibration=2, shown=2, many=66, sensitive=1, kept=1, compared=((8,), (8, 4)),
        sampler=sampler,
    )  # fmt: skip
    frames, tensors = start_here.measure(pipe, plan)
    assert set(frames) == {
        "ranges", "layers", "ends", "powers", "single", "inheritance", "quality",
    }  # fmt: skip
    assert len(frames["powers"]) == 4 * 3 * 2
    assert frames["quality"][["weights", "activations"]].to_numpy().tolist() == [[8, 8], [8, 4]]
    results = stored.Stored(frames, tensors, {})
    pictures = start_here.pictures(results)
    assert list(pictures) == [(0, 0), (8, 8), (8, 4), (4, 8), (4, 4)]
    near, far = ((pictures[p] - pictures[0, 0]).square().mean() for p in ((8, 8), (4, 4)))
    assert near < far
    assert tensors["single"].shape == (3, 1, 3, 8, 8)
    assert tensors["features"].shape == (2, 66, 64)


def test_the_command_writes_results_with_their_origin(pipe, sampler, shipped, monkeypatch) -> None:
    pipe.save_pretrained(shipped / "models" / "pixel-unet")
    monkeypatch.setattr(start_here, "measure", lambda pipe, say: ({}, {"x": torch.ones(1)}))
    start_here.main()
    found = stored.load("start-here").provenance
    assert found["model"] == "pixel-unet"
    assert len(found["model_hash"]) == 16
    assert found["command"] == start_here.COMMAND


def test_the_survey_has_27_papers_in_ten_categories() -> None:
    assert len(papers()) == len({p["slug"] for p in papers()}) == 27
    assert len(categories()) == 10
    assert {p["category"] for p in papers()} == {c["number"] for c in categories()}
    assert {m for p in papers() for m in p["moments"]} == set(MOMENTS)
    assert {p["slug"] for p in papers("correct")} == {
        "ptqd", "d2-dpm", "tac-diffusion", "qncd",
    }  # fmt: skip
    with pytest.raises(UnknownNameError, match="calibrate"):
        papers("think")
