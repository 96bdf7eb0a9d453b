"""Open pipelines by shipped name, folder or hub id. Safetensors and JSON only."""

import hashlib
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from dqlab.errors import CheckpointError, InvalidInputError, UnknownNameError
from dqlab.paths import models_dir

PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"}
WEIGHTS = "diffusion_pytorch_model.safetensors"
BARE = "denoiser"
"""The component of a model without a pipeline."""
OPTIONS = ("dtype", "variant", "revision", "cache_dir", "token")
"""Options of diffusers' `from_pretrained` that `load` passes on."""

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


def refuse_code(folder: Path) -> None:
    """Raise CheckpointError if a fetched folder brings code of its own."""
    if found := sorted(folder.rglob("*.py")):
        raise CheckpointError(
            f"{found[0]} is code that came with the model; dqlab runs none. Build the pipeline "
            "yourself and pass it to dqlab.quantize."
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


def weights_hash(folder: Path) -> str:
    """Sixteen digits that stand for every safetensors file in `folder`."""
    return hashlib.sha256("".join(file_sums(folder).values()).encode()).hexdigest()[:16]


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


def check_options(options: dict[str, Any]) -> None:
    """Raise InvalidInputError for loading options that dqlab does not pass on."""
    for name in options:
        if name not in OPTIONS:
            raise InvalidInputError(
                f"{name}={options[name]!r} is no option of load; there are {', '.join(OPTIONS)}. "
                "Code and pickled weights of a model folder are never read."
            )


def fetch(name: str, options: dict[str, Any]) -> Path:
    """The local copy of a hub id's configs and safetensors, downloaded if it is not here yet.

    Raises:
        CheckpointError: if it cannot be had, has no safetensors, or asks to run code.

    """
    import diffusers

    where = {k: v for k, v in options.items() if k != "dtype"}
    try:
        folder = Path(
            diffusers.DiffusionPipeline.download(str(name), use_safetensors=True, **where)
        )
    except Exception as error:
        raise CheckpointError(_not_opened(name, error)) from error
    refuse_code(folder)
    return folder


def _not_opened(name: str | Path, error: Exception) -> str:
    fix = ""
    if "safetensors" in str(error):
        fix = (
            " dqlab reads safetensors only: name a revision or variant that has them, as in "
            "load(..., variant='fp16'), or convert the model where you trust it, with "
            "pipe.save_pretrained(folder), and load that folder."
        )
    return f"{name} could not be opened as a diffusers pipeline: {error}{fix}"


def locate(name: str | Path, options: dict[str, Any]) -> Path:
    """The folder of a shipped name, path or hub id, checked to hold nothing that could run code.

    Raises:
        UnknownNameError, CheckpointError: with what is wrong and what to do.

    """
    folder = find_folder(name)
    if folder is None:
        return fetch(str(name), options)
    refuse_pickles(folder)
    verify_sums(folder)
    return folder


def open_pipeline(name: str | Path, options: dict[str, Any] | None = None):
    """A diffusers pipeline from a shipped name, folder or hub id; `options` are of `OPTIONS`.

    Raises:
        UnknownNameError, CheckpointError: with what is wrong and what to do.

    """
    options = options or {}
    return open_folder(locate(name, options), options)


def open_folder(folder: Path, options: dict[str, Any], pipeline: str = "", **components: Any):
    """The pipeline in a folder that `locate` found.

    Args:
        folder: where it is.
        options: of `OPTIONS`.
        pipeline: the class to open it as; by default the one the folder names.
        components: parts that are here already, by name.

    Raises:
        CheckpointError: with what is wrong and what to do.

    """
    given = {k: v for k, v in options.items() if k in ("dtype", "variant")}
    index = _index(folder)
    # diffusers wants to be told again which parts a pipeline was saved without
    absent = {name: None for name, kind in index.items() if kind == [None, None]}
    try:
        with _quiet():
            pipe = find_class(pipeline or index["_class_name"]).from_pretrained(
                folder, use_safetensors=True, **absent | components | given
            )
    except Exception as error:
        raise CheckpointError(_not_opened(folder, error)) from error
    if "id2label" in index:
        # DiTPipeline reads the class names and would leave them out when it is saved again.
        pipe.register_to_config(id2label=index["id2label"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars for small files and no remarks on packages that nobody needs."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    loggers = [of_diffusers, of_transformers]
    before = [(x.get_verbosity(), x.is_progress_bar_enabled()) for x in loggers]
    for logger in loggers:
        logger.disable_progress_bar()
        logger.set_verbosity_error()
    try:
        yield
    finally:
        for logger, (verbosity, bars) in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)
            if bars:
                logger.enable_progress_bar()


def _index(folder: Path) -> dict[str, Any]:
    """The folder's parts and the name of its pipeline's class.

    Raises:
        CheckpointError: if the folder's pipeline class is code of its own.

    """
    index = read_json(folder / "model_index.json")
    if not isinstance(index.get("_class_name"), str):
        raise CheckpointError(f"{folder} asks for a pipeline class of its own code; refused.")
    return index


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


def record_of(denoiser: nn.Module) -> dict[str, Any]:
    """How a network was quantized; {} if it was not."""
    config = denoiser.config if hasattr(denoiser, "register_to_config") else vars(denoiser)
    return dict(config.get("quantization_config", {}))


def write_network(denoiser: nn.Module, folder: str | Path) -> None:
    """Save a quantized network that is none of diffusers': its record, and one file of tensors."""
    from safetensors.torch import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    config = {"quantization_config": record_of(denoiser)}
    (Path(folder) / "config.json").write_text(json.dumps(config, indent=2))
    # Tensors may share memory, which the format does not store.
    tensors = {k: v.detach().clone().contiguous() for k, v in denoiser.state_dict().items()}
    save_file(tensors, Path(folder) / WEIGHTS)
