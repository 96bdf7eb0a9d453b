"""Results that ship with a notebook: frames and tensors with provenance, and the live redo."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dqlab.errors import CheckpointError, MismatchError
from dqlab.methods import load as load_pipeline
from dqlab.models.families import family_of
from dqlab.models.loading import find_folder, read_json, weights_hash
from dqlab.models.training import git_commit, machine_kind
from dqlab.paths import data_dir

Found = tuple[dict[str, pd.DataFrame], dict[str, Tensor]]
"""Frames and tensors by name: what a `measure(pipe, plan, say)` returns for `produce`."""
Say = Callable[[str], None]
"""Is told what has been done."""


def silent(words: str) -> None:
    """Tell nobody."""


FRAMES, TENSORS = "frames.json", "tensors.safetensors"
DIGITS = 6


@dataclass(frozen=True)
class Stored:
    """What a folder under data/results holds: `frames`, `tensors`, and their `provenance`."""

    frames: dict[str, pd.DataFrame]
    tensors: dict[str, Tensor]
    provenance: dict[str, Any]

    def __str__(self) -> str:
        p = self.provenance
        return (
            f"Stored results of {p['model']} (weights {p['model_hash']}), made {p['date']} at "
            f"commit {p['commit']} in {p['seconds']:.0f} s on {p['machine']}. Regenerate: "
            f"{p['command']}"
        )

    __repr__ = __str__


def results_dir(name: str) -> Path:
    """The folder of one notebook's stored results."""
    return data_dir() / "results" / name


def provenance(model: str, folder: Path, command: str, seconds: float) -> dict[str, Any]:
    """Where results come from: model and its hash, command, commit, machine, date, duration."""
    return {
        "model": model,
        "model_hash": weights_hash(folder),
        "command": command,
        "commit": git_commit(),
        "machine": machine_kind(),
        "torch": torch.__version__.split("+")[0],
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
    }


def save(folder: Path, stored: Stored) -> None:
    """Write frames (six significant digits) and tensors; a file appears only when complete."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = {name: _plain(frame) for name, frame in stored.frames.items()}
    text = json.dumps({"provenance": stored.provenance, "frames": frames}, indent=0)
    tensors = {name: t.contiguous() for name, t in stored.tensors.items()}
    save_file(tensors, folder / f"{TENSORS}.part")
    (folder / f"{FRAMES}.part").write_text(text.replace(",\n", ", ") + "\n")
    for name in (TENSORS, FRAMES):
        (folder / f"{name}.part").replace(folder / name)


def produce(name: str, command: str, model: str, measure: Callable[..., Found]) -> None:
    """Measure a shipped model and replace data/results/`name`.

    Args:
        name: of the results.
        command: that was typed.
        model: a shipped model's name.
        measure: called with the full-precision pipeline and `say=`. Those of dqlab also take
            `plan`, how much to measure; its default is what ships.

    """

    def measured(say: Say) -> Found:
        pipe = load_pipeline(model)
        # Convolutions over channels-last tensors take three quarters of the time.
        family_of(pipe).denoiser(pipe).to(memory_format=torch.channels_last)
        return measure(pipe, say=say)

    produce_from(name, command, model, find_folder(model), measured)


def produce_from(
    name: str, command: str, source: str, folder: Path, measure: Callable[..., Found]
) -> None:
    """Measure whatever lies in `folder`, told as `source`; else like `produce`."""
    torch.set_num_threads(1)
    started = time.perf_counter()

    def say(words: str) -> None:
        print(f"{time.perf_counter() - started:6.0f} s  {words}", flush=True)

    frames, tensors = measure(say)
    origin = provenance(source, folder, command, time.perf_counter() - started)
    save(results_dir(name), Stored(frames, tensors, origin))
    say(f"wrote {results_dir(name)}")


def load(name: str) -> Stored:
    """Read `data/results/<name>`.

    Raises:
        CheckpointError: if it is missing or damaged.

    """
    folder = results_dir(name)
    if not (folder / FRAMES).is_file():
        raise CheckpointError(
            f"No stored results in {folder}. Restore the folder from the repository, or run "
            f"python -m dqlab.phenomena.{name.replace('-', '_')}"
        )
    found = read_json(folder / FRAMES)
    try:
        tensors = load_file(folder / TENSORS)
        frames = {key: pd.DataFrame(columns) for key, columns in found["frames"].items()}
        return Stored(frames, tensors, found["provenance"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged ({error}). Restore it.") from error


def redo(what: str, stored: float, live: float, *, tolerance: float, unit: str = "") -> str:
    """Compare a stored number with the same one computed now.

    Args:
        what: names the number.
        stored: the value from the file.
        live: the value computed now.
        tolerance: allowed difference: in dB if `unit` is "dB", else relative to `stored`.
        unit: printed behind the number.

    Returns:
        A sentence with the stored value.

    Raises:
        MismatchError: if they differ by more, naming both.

    """
    allowed = tolerance if unit == "dB" else tolerance * abs(stored)
    within = f"{tolerance:g} dB" if unit == "dB" else f"{100 * tolerance:g} %"
    if not abs(live - stored) <= allowed:
        raise MismatchError(
            f"{what}: stored {stored:.4g} {unit}, computed now {live:.4g} {unit}; they may differ "
            f"by {within}. Model and stored results do not belong together: regenerate them."
        )
    value = f"{stored:.1f}" if unit == "dB" else f"{stored:.3g}"
    return f"{what}: {value} {unit}".rstrip() + f", computed again just now, within {within}."


def _plain(frame: pd.DataFrame) -> dict[str, list]:
    return {str(name): [_rounded(v) for v in frame[name].tolist()] for name in frame.columns}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def to_bytes(images: Tensor) -> Tensor:
    """Pictures in [0, 1] as uint8, for storing."""
    return images.mul(255).round().clamp(0, 255).to(torch.uint8)


def to_pictures(stored: Tensor) -> Tensor:
    """Inverse of `to_bytes`, to within half a grey level."""
    return stored.float() / 255
