"""A reconstruction killed on the way continues behind the units that were finished."""

import os
import signal
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from tiny_models import SAMPLER, pipeline, recorded

from dqlab import describe, quantize
from dqlab.errors import CheckpointError, InvalidInputError
from dqlab.fit.profiles import ROUNDING
from dqlab.fit.profiles import STEPS as STEP_SETTINGS

# The package offers a function of the module's name.
fitting = import_module("dqlab.fit.reconstruct")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (ROUNDING, STEP_SETTINGS):
        quick = replace(table["teach"], iterations=2, batch=4)
        monkeypatch.setitem(table, "teach", quick)


def quantized(state_dir=None, weights=3, seed=0):
    states = recorded()[0]
    return quantize(
        pipeline(), "q-diffusion", weights, 8, sampler=SAMPLER, calibration=states,
        state_dir=state_dir, seed=seed,
    )  # fmt: skip


@pytest.fixture
def fitted(monkeypatch) -> list[str]:
    """Units as they are fitted."""
    done, fit = [], fitting.reconstruct

    def counted(student, teacher, unit, *more):
        done.append(unit.path)
        return fit(student, teacher, unit, *more)

    monkeypatch.setattr(fitting, "reconstruct", counted)
    return done


def kill_before(monkeypatch, number: int, kill) -> None:
    fit, calls = fitting.reconstruct, []

    def killed(*args):
        calls.append(1)
        if len(calls) == number:
            kill()
        return fit(*args)

    monkeypatch.setattr(fitting, "reconstruct", killed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("number", [4, 16])
def test_a_kill_loses_the_unit_in_work_alone(tmp_path, fitted, monkeypatch, number) -> None:
    plain = describe(quantized())["fingerprint"]
    everything = list(fitted)
    fitted.clear()
    if (child := os.fork()) == 0:
        kill_before(monkeypatch, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        quantized(tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.rglob("*.safetensors"))) == number - 1
    assert describe(quantized(tmp_path))["fingerprint"] == plain
    assert fitted == everything[number - 1 :]


def test_nothing_is_fitted_twice(tmp_path, fitted) -> None:
    first = describe(quantized(tmp_path))["fingerprint"]
    count = len(fitted)
    assert describe(quantized(tmp_path))["fingerprint"] == first
    assert len(fitted) == count


@pytest.mark.parametrize("other", [{"weights": 4}, {"seed": 1}])
def test_another_job_starts_from_the_beginning(tmp_path, fitted, other) -> None:
    quantized(tmp_path)
    count = len(fitted)
    assert describe(quantized(tmp_path, **other)) != describe(quantized(tmp_path))
    assert len(fitted) == 2 * count


def test_a_damaged_unit_is_named(tmp_path) -> None:
    quantized(tmp_path)
    file = sorted(tmp_path.rglob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=rf"{file.name}.*Delete it to start again"):
        quantized(tmp_path)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    quantized()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [3, b"x", ["a"]])
def test_what_is_no_folder_is_refused(given, tmp_path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for each in (given, file):
        with pytest.raises(InvalidInputError, match=r"state_dir=.*give the path of a folder"):
            quantized(each)


def test_restored_numbers_are_the_same(tmp_path) -> None:
    q, again = quantized(tmp_path), quantized(tmp_path)
    states = q.unet.state_dict(), again.unet.state_dict()
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
