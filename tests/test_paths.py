"""Folders that appear whole or not at all."""

import os
import signal
from pathlib import Path

import pytest

from dqlab.paths import appearing_whole

GONE = 2**22 + 5  # above the largest process number of Linux


def write(folder: Path, text: str) -> None:
    with appearing_whole(folder) as fresh:
        fresh.mkdir()
        (fresh / "file").write_text(text)


def test_a_folder_takes_the_place_of_the_old_one(tmp_path) -> None:
    folder = tmp_path / "a" / "out"
    for text in ("one", "two"):
        write(folder, text)
        assert (folder / "file").read_text() == text
    assert list(folder.parent.iterdir()) == [folder]


def test_an_error_leaves_the_old_one(tmp_path) -> None:
    folder = tmp_path / "out"
    write(folder, "one")
    with pytest.raises(ZeroDivisionError), appearing_whole(folder) as fresh:
        fresh.mkdir()
        raise ZeroDivisionError
    assert (folder / "file").read_text() == "one"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("at", ["writing", "first rename", "second rename", "cleaning"])
def test_after_a_kill_the_folder_is_whole_and_alone(tmp_path, at, monkeypatch) -> None:
    folder = tmp_path / "out"
    write(folder, "one")
    if (child := os.fork()) == 0:
        die, rename, renames = lambda: os.kill(os.getpid(), signal.SIGKILL), Path.rename, []

        def renamed(path, target):
            renames.append(path)
            if len(renames) == 1 + (at == "second rename") and at != "cleaning":
                die()
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", renamed)
        monkeypatch.setattr("dqlab.paths.tempfile._shutil.rmtree", lambda *_, **__: die())
        if at == "writing":
            with appearing_whole(folder) as fresh:
                fresh.mkdir()
                die()
        write(folder, "two")
    os.waitpid(child, 0)
    assert len(list(tmp_path.glob(".out-*"))) == 1
    with pytest.raises(KeyError), appearing_whole(folder):
        before = (folder / "file").read_text()
        raise KeyError
    assert before == ("one" if at in ("writing", "first rename") else "two")
    assert list(tmp_path.iterdir()) == [folder]


def test_what_others_are_writing_or_own_is_left_alone(tmp_path) -> None:
    others = [
        f".out-{os.getpid()}-abc",
        ".out-backup",
        ".out-my-copy",
        f".outer-{GONE}-x",
        f".out-{GONE}-{os.getpid()}-abc",  # of out-<GONE>, by a process that lives
        "out-1-2",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / f".out-{GONE}-abc").mkdir()
    write(tmp_path / "out", "one")
    assert {p.name for p in tmp_path.iterdir()} == {*others, "out"}


def test_names_with_wildcards_are_names(tmp_path) -> None:
    (tmp_path / f".axb-{GONE}-q").mkdir()
    write(tmp_path / "a[x]b", "one")
    assert (tmp_path / f".axb-{GONE}-q").exists()
