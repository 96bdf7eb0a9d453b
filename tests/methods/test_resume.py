"""A reconstruction killed on the way continues behind the units that were finished."""

import os
import signal
from dataclasses import replace
from functools import cache
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


def quantized(state_dir=None, seed=0):
    states = recorded()[0][::3]
    return quantize(
        pipeline(), "q-diffusion", 3, 8, sampler=SAMPLER, calibration=states,
        state_dir=state_dir, seed=seed,
    )  # fmt: skip


@cache
def uninterrupted() -> str:
    """The fingerprint of what comes out without a folder."""
    return describe(quantized())["fingerprint"]


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
@pytest.mark.parametrize("number", [4, 20])
def test_a_kill_loses_the_unit_in_work_alone(tmp_path, fitted, monkeypatch, number) -> None:
    """18 units learn their rounding, then their step sizes: the second kill comes there."""
    wanted = uninterrupted()
    if (child := os.fork()) == 0:
        kill_before(monkeypatch, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        quantized(tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    kept = list(tmp_path.rglob("*.safetensors"))
    assert len(kept) == number - 1
    fitted.clear()
    assert describe(quantized(tmp_path))["fingerprint"] == wanted
    assert len(fitted) == 2 * 18 - len(kept)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_finished_job_is_restored_and_another_is_not(tmp_path, fitted, monkeypatch) -> None:
    first = quantized(tmp_path).unet.state_dict()
    fitted.clear()
    again = quantized(tmp_path).unet.state_dict()
    assert not fitted
    assert all(torch.equal(v, again[k]) for k, v in first.items())
    kill_before(monkeypatch, 1, interrupt)
    with pytest.raises(KeyboardInterrupt):  # the first unit is to be fitted
        quantized(tmp_path, seed=1)


def test_a_damaged_unit_is_named(tmp_path, monkeypatch) -> None:
    kill_before(monkeypatch, 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        quantized(tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=rf"{file.name}.*Delete it to start again"):
        quantized(tmp_path)


@pytest.mark.parametrize("given", [3, b"x", ["a"]])
def test_what_is_no_folder_is_refused(given, tmp_path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for each in (given, file):
        with pytest.raises(InvalidInputError, match=r"state_dir=.*give the path of a folder"):
            quantized(each)
