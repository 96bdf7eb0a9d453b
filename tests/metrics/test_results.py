"""Results as lines: what is written comes back, and damage is named."""

import json
import math

import pytest

from dqlab.errors import CheckpointError
from dqlab.metrics.results import Result, append, read

INFO = {
    "recipe": {"methods": ["q-diffusion", "ptqd"]},
    "weights": 4,
    "activations": None,
    "policy": {"name": "common"},
    "sampler": {"num_inference_steps": 20, "eta": 0.0, "guidance_scale": None},
    "calibration": {"hash": "abc"},
    "fingerprint": "def",
    "profile": "teach",
    "seed": 3,
}


@pytest.fixture(autouse=True)
def _model(monkeypatch):
    monkeypatch.setattr("dqlab.metrics.results.model_hash", lambda name: "123")


def result(**changes) -> Result:
    given = {"metric": "eps_sqnr_db", "unit": "dB", "value": 21.25, "interval": (20.5, 22.0)}
    return Result.of("pixel-unet", INFO, seeds=(3000, 16), **given | changes)


def test_a_result_describes_its_pipeline() -> None:
    found = result()
    assert (found.recipe, found.weights, found.activations) == ("q-diffusion | ptqd", 4, None)
    assert found.hashes == {"model": "123", "calibration": "abc", "network": "def"}
    assert (found.policy, found.profile, found.seed) == ("common", "teach", 3)
    assert found.commit
    assert found.machine
    assert result(recipe="q-diffusion: + split").recipe == "q-diffusion: + split"


def test_what_is_appended_is_read_back(tmp_path) -> None:
    path, first = tmp_path / "new" / "results.jsonl", result(against="rtn")
    append(path, [first])
    append(path, [result(value=1 / 3, interval=None)])
    found = read(path)
    assert found[0] == first
    assert found[1].value == 0.333333
    assert found[1].interval is None
    assert all(json.loads(line)["version"] == 1 for line in path.read_text().splitlines())


def test_a_failed_write_leaves_the_lines_before(tmp_path, monkeypatch) -> None:
    path = tmp_path / "r.jsonl"
    append(path, [result()])

    def fail(*names) -> None:
        raise OSError("no room")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no room"):
        append(path, [result(), result()])
    assert len(read(path)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_finite_becomes_null(tmp_path) -> None:
    append(tmp_path / "r.jsonl", [result(value=math.inf)])
    assert read(tmp_path / "r.jsonl")[0].value is None


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"version": 1, "model": "x"}', '{"version": 2}']
)
def test_damage_is_named_with_its_line(tmp_path, line) -> None:
    path = tmp_path / "r.jsonl"
    append(path, [result()])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(CheckpointError, match="Line 2 of"):
        read(path)


def test_a_missing_file_is_an_error(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path / "none.jsonl")
