"""Open pipelines by shipped name, folder or hub id. Safetensors and JSON only."""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

from dqlab.errors import CheckpointError, UnknownNameError
from dqlab.paths import models_dir

PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"}

OWN_CLASSES = {
    "SuperResolutionPipeline": "dqlab.models.pipelines.super_resolution",
    "BinaryLatentPipeline": "dqlab.models.pipelines.binary_latent",
    "BinaryTransformer": "dqlab.models.pipelines.binary_networks",
}
"""Pipelines and networks that diffusers does not have, and the module each is in."""


def find_class(name: str) -> type:
    """The class that a folder names: ours, or else diffusers' own.

    Raises:
        AttributeError: if neither has it.

    """
    import diffusers

    return getattr(importlib.import_module(OWN_CLASSES.get(name, diffusers.__name__)), name)


def shipped() -> list[str]:
    """Names of the pipelines that lie under `data/models`."""
    return sorted(p.parent.name for p in models_dir().glob("*/model_index.json"))


def find_folder(name: str | Path) -> Path | None:
    """The folder a name or path stands for; None for a hub id that is not here.

    Raises:
        UnknownNameError: if it is neither a shipped name, a folder, nor a hub id.

    """
    for folder in (models_dir() / str(name), Path(name)):
        if (folder / "model_index.json").is_file():
            return folder
    if Path(name).is_dir():
        raise CheckpointError(
            f"{name} is a folder without model_index.json, so no diffusers pipeline. Save one "
            "with pipe.save_pretrained(folder)."
        )
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        return None
    raise UnknownNameError(
        f"No model {str(name)!r}. Shipped: {', '.join(shipped()) or 'none'}; or give a diffusers "
        "folder or a hub id such as 'google/ddpm-cifar10-32'."
    )


def refuse_pickles(folder: Path) -> None:
    """Raise CheckpointError if anything in `folder` could run code when read."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICKLED or path.suffix == ".py":
            raise CheckpointError(
                f"{path} may run code when it is read. dqlab opens safetensors and JSON only: "
                "convert it (pipe.save_pretrained(..., safe_serialization=True)) and delete it."
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, with a CheckpointError that names the file."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}).") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds {type(found).__name__}, not a JSON object.")
    return found


def file_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every safetensors file in `folder`, by relative path."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*.safetensors"))
    }


def verify_sums(folder: Path) -> None:
    """Compare a shipped folder's weights with the sums in its `training.json`, if it has them."""
    record = folder / "training.json"
    expected = read_json(record).get("sha256", {}) if record.is_file() else {}
    found = file_sums(folder) if expected else {}
    for name, wanted in expected.items():
        if found.get(name) != wanted:
            raise CheckpointError(
                f"{folder / name} is not the file its training.json describes: it is truncated, "
                "changed or missing. Restore the folder from the repository, or train again."
            )


def open_pipeline(name: str | Path, pipeline: str = "", **components: Any):
    """A diffusers pipeline from a shipped name, folder or hub id; `components` replace its parts.

    `pipeline` is the class to open it as; by default the one the folder names.

    Raises:
        UnknownNameError, CheckpointError: with what is wrong and what to do.

    """
    from diffusers.utils import logging

    logging.disable_progress_bar()
    folder = find_folder(name)
    if folder is not None:
        refuse_pickles(folder)
        verify_sums(folder)
        named = read_json(folder / "model_index.json").get("_class_name")
        if not isinstance(named, str):
            raise CheckpointError(f"{folder} asks for a pipeline class of its own code; refused.")
        pipeline = pipeline or named
    try:
        pipe = find_class(pipeline or "DiffusionPipeline").from_pretrained(
            folder or str(name), use_safetensors=True, low_cpu_mem_usage=False, **components
        )
    except Exception as error:
        raise CheckpointError(
            f"{name} could not be opened as a diffusers pipeline: {error}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def open_component(name: str, class_name: str):
    """A single diffusers model of `data/models`, such as the autoencoder; fp32, eval, frozen."""
    import diffusers

    folder = models_dir() / name
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is missing. Train it: dqlab train {name}")
    refuse_pickles(folder)
    verify_sums(folder)
    model = getattr(diffusers, class_name).from_pretrained(folder, use_safetensors=True)
    return model.float().eval().requires_grad_(False)
