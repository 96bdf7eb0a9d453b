"""The doctor's verdicts on machines that are made up."""

import io
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console

from dqlab import doctor
from dqlab.doctor import Check


def test_every_finding_but_ok_says_what_to_do() -> None:
    checks = doctor.diagnose()
    names = [check.name for check in checks]
    assert names[:11] == [
        "python", "platform", "cores", "memory", "instructions", "gpu",
        "triton", "browser", "fashion-mnist", "models", "disk",
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert all(check.found for check in checks)
    assert all(check.advice for check in checks if check.status != "ok")


def test_table_shows_every_word() -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(doctor.render([Check("disk", "warn", "[1] GiB", "Free some.")]))
    text = console.export_text()
    assert all(word in text for word in ("disk", "warn", "[1] GiB", "Free some."))


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 13, 5), "ok"), ((3, 14, 0), "fail")],
)
def test_python_range(monkeypatch, version, status) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert doctor.check_python().status == status


def test_little_memory_and_disk_warn(monkeypatch) -> None:
    memory = namedtuple("Memory", "total available")
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(2 * doctor.GIB, doctor.GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, doctor.GIB))
    assert doctor.check_memory().status == "warn"
    assert doctor.check_disk().status == "warn"


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        ("avx2", "warn"),
        ("avx2 avx512_vnni", "ok"),
        ("avx2 avx_vnni", "ok"),
        ("amx_int8", "ok"),
    ],
)
def test_instruction_sets(tmp_path: Path, flags: str, status: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    check = doctor.check_instructions(tmp_path / "cpuinfo")
    assert check.status == status
    assert all(flag in check.found for flag in flags.split())


def test_driver_that_torch_cannot_use(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: "Some GPU, 600.1")
    check = doctor.check_gpu()
    assert check.status == "warn"
    assert "TORCH=cuda" in check.advice


@pytest.mark.parametrize(
    ("returncode", "answer"), [(0, "Some GPU, 600.1"), (9, None)], ids=["works", "no driver"]
)
def test_driver_is_read_from_nvidia_smi(monkeypatch, returncode, answer) -> None:
    done = subprocess.CompletedProcess([], returncode, stdout="Some GPU, 600.1\nOther, 600.1\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert doctor.nvidia_driver() == answer


def test_no_nvidia_smi(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert doctor.nvidia_driver() is None


@pytest.mark.parametrize(
    ("installed", "gpu", "status", "word"),
    [
        (True, True, "ok", "compiler"),
        (True, False, "ok", "interpreter"),
        (False, False, "warn", "absent"),
    ],
)
def test_triton_three_ways(monkeypatch, installed, gpu, status, word) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda _: installed or None)
    monkeypatch.setattr(doctor.metadata, "version", lambda _: "3.9.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    check = doctor.check_triton()
    assert (check.status, word in check.found) == (status, True)


def test_browser_is_looked_up_on_the_path(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_browser().status == "warn"
    (tmp_path / "chromium").touch(mode=0o755)
    assert doctor.check_browser() == Check("browser", "ok", str(tmp_path / "chromium"))


def test_models_are_folders_with_an_index(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DQLAB_SHIPPED_DIR", str(tmp_path))
    assert doctor.check_models().status == "warn"
    folder = tmp_path / "models" / "pixel-unet"
    folder.mkdir(parents=True)
    assert doctor.check_models().status == "warn"
    (folder / "model_index.json").write_text("{}")
    assert "pixel-unet" in doctor.check_models().found


def test_data_dir_that_does_not_hold_the_files(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DQLAB_DATA_DIR", str(tmp_path))
    assert doctor.check_fashion_mnist().status == "warn"


def test_package_ranges(monkeypatch) -> None:
    wanted = ["torch>=2", "numpy<1", "nothing-like-it>=1", "pandas<1; extra == 'lab'"]
    wanted += ["absent-extra>=1; extra == 'lab'", "absent-here>=1; python_version < '3'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: wanted)
    found = {check.name: check.status for check in doctor.check_packages()}
    assert found == {"numpy": "fail", "nothing-like-it": "fail", "pandas": "warn"}
