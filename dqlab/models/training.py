"""Train a shipped model: run its recipe, resumably, and export the result with provenance."""

import contextlib
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from dqlab import seeds
from dqlab.engine import Budget, Report, train
from dqlab.errors import CheckpointError, InvalidInputError
from dqlab.models.fashion import data_hash
from dqlab.models.loading import file_sums, read_json, verify_sums
from dqlab.models.recipes import recipe_for
from dqlab.models.recipes.base import Recipe
from dqlab.paths import ROOT, appearing_whole, models_dir, state_dir


def train_model(
    name: str,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    batch: int | None = None,
    device: str | None = None,
    precision: str = "auto",
    seed: int = seeds.TRAINING,
    fresh: bool = False,
    out: Path | None = None,
    progress: bool = True,
) -> Path:
    """Train the shipped model `name` from scratch, or continue where the last run stopped.

    The resumable state lies in `.dqlab/runs/<name>/`; the folder with the result is replaced
    only when the run is complete. A complete run goes on with its last stage if it is given a
    larger budget, and is left alone otherwise.

    Args:
        name: a recipe, such as "pixel-unet".
        minutes: time budget; default: the recipe's.
        steps: step budget instead, reproducible to the byte on one machine.
        batch: rows of a batch; default: the recipe's, which are few for the sake of slow cores.
        device: default: a GPU if there is one.
        precision: "fp32", "bf16", or "auto" (times both).
        seed: names every random draw.
        fresh: throw a saved state away.
        out: result folder; default `data/models/<name>`.
        progress: show a bar.

    Returns:
        The folder with the result.

    Raises:
        InvalidInputError: if another process is training the same model in this checkout, if
            `out` holds anything but an earlier result of this recipe, or for a device that is
            not here.

    """
    recipe, folder = recipe_for(name, batch), out or models_dir() / name
    _check_replaceable(folder, name)
    if steps is None and minutes is None:
        minutes = recipe.minutes
    budget = Budget(steps, minutes)
    place = _device(device)
    run_dir = state_dir() / "runs" / name
    commit = git_commit()
    with _alone(run_dir):
        report = train(
            recipe.task(budget, place),
            seed=seed,
            run_dir=run_dir,
            device=place,
            precision=precision,
            fresh=fresh,
            progress=progress,
            on_save=lambda module: _replace(recipe, module, run_dir / "latest"),
        )
    record = provenance(recipe, report, seed, commit, place)
    if report.steps == 0 and _holds(folder, record):
        return folder  # with its card, which holds for these weights
    record["budget"] = {"steps": steps} if minutes is None else {"minutes": minutes}
    _replace(recipe, report.module, folder, record)
    return folder


def _device(asked: str | None) -> torch.device:
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    if asked.split(":")[0] not in known:
        raise InvalidInputError(f"device={asked!r} is not here; there is {' and '.join(known)}.")
    return torch.device(asked)


def _check_replaceable(folder: Path, name: str) -> None:
    """A result takes the place of `folder`, which must therefore hold nothing else."""
    record = folder / "training.json"
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not record.is_file() or _recipe_in(record) != name:
        raise InvalidInputError(
            f"{folder} exists and is no earlier result of {name}, so it is not replaced. Name a "
            f"new folder, such as {folder / name}."
        )


def _recipe_in(record: Path) -> str:
    """Whose result it is; a damaged one is taken by its folder's name."""
    with contextlib.suppress(CheckpointError, KeyError):
        return read_json(record)["recipe"]
    return record.parent.name


_SAME = ("recipe", "settings", "seed", "stages", "precision")
"""What a record must agree in, for a folder to hold the weights of a run."""


def _holds(folder: Path, record: dict[str, Any]) -> bool:
    """Whether `folder` has whole the weights that `record` tells of."""
    try:
        found = read_json(folder / "training.json")
        verify_sums(folder)
    except CheckpointError:
        return False
    wanted = json.loads(json.dumps(record))
    return bool(file_sums(folder)) and all(found.get(k) == wanted[k] for k in _SAME)


@contextlib.contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Two runs would overwrite each other's state, so only one may hold a run's lock."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{run_dir}.lock", blocking=False):
            yield
    except Timeout:
        raise InvalidInputError(
            f"Another process is training {run_dir.name} with its state in {run_dir}. Wait for it "
            "or stop it; one that is killed gives the lock back."
        ) from None


def _replace(recipe: Recipe, module, folder: Path, record: dict[str, Any] | None = None) -> None:
    """Export beside `folder`, then swap, so that it is never half-written."""
    with appearing_whole(folder) as fresh:
        recipe.export(module.to("cpu") if record else _on_cpu(module), fresh)
        _forget_origins(fresh)
        if record:
            (fresh / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def _forget_origins(folder: Path) -> None:
    """Take out where on this machine a part was loaded from, which diffusers writes down."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def _on_cpu(module):
    """A CPU copy of a module that is still being trained."""
    import copy

    return copy.deepcopy(module).to("cpu")


def provenance(
    recipe: Recipe, report: Report, seed: int, commit: str, device: torch.device
) -> dict[str, Any]:
    """What a model card must say about how the weights came to be."""
    return {
        "recipe": recipe.name,
        "settings": recipe.settings,
        "starts_from": recipe.origins(),
        "seed": seed,
        "stages": report.stages,
        "precision": report.precision,
        "commit": commit,
        "data": {"name": "Fashion-MNIST", "hash": data_hash()},
        "machine": machine_kind(device),
        "date": time.strftime("%Y-%m-%d"),
        "curve": report.curve[:: max(1, len(report.curve) // 200)],
    }


def git_commit() -> str:
    """The checkout's commit, with "+" if files differ from it, or "unknown" outside one."""
    if not shutil.which("git"):
        return "unknown"

    def ask(*words: str) -> str:
        done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
        return done.stdout.strip()

    commit = ask("rev-parse", "--short=12", "HEAD")
    changed = ask("status", "--porcelain", "--untracked-files=no", "--", "dqlab")
    return (commit + ("+" if changed else "")) or "unknown"


def machine_kind(device: torch.device | str = "cpu") -> str:
    """Cores and instruction set, or the name of the GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {capability}, {torch.get_num_threads()} threads"
