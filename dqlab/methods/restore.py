"""`load`: open any pipeline, quantized by dqlab or not."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dqlab.errors import CheckpointError, DqlabError
from dqlab.formats import Format
from dqlab.layers import StepContext, quantizers, split_layer
from dqlab.methods.corrected import PREFIX, corrected
from dqlab.methods.correction import restore_correction
from dqlab.methods.corrector import Corrector
from dqlab.methods.record import SAVE_VERSION, fingerprint
from dqlab.methods.registry import all_methods
from dqlab.methods.run import wrap_sites
from dqlab.models.families import FAMILIES, Sampler, family_of
from dqlab.models.loading import (
    find_class,
    find_folder,
    open_pipeline,
    read_json,
    refuse_pickles,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
_DAMAGE = (
    SafetensorError,
    DqlabError,
    OSError,
    RuntimeError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
)


def load(name: str | Path):
    """A pipeline from a shipped name ("pixel-unet"), a diffusers folder, or a hub id.

    A folder written by a quantized pipeline's `save_pretrained` comes back quantized and gives
    identical outputs.

    Raises:
        UnknownNameError: if there is no such model; says what there is.
        CheckpointError: if the folder is damaged, holds pickled files, or is from another version.

    """
    folder = find_folder(name)
    component = folder and _quantized_component(folder)
    if not component:
        return open_pipeline(name)
    refuse_pickles(folder)
    all_methods()  # formats and corrections of methods are known once their modules are loaded
    return _open_quantized(folder, component, _restore(folder, component))


def _open_quantized(folder: Path, component: str, denoiser: nn.Module):
    """The pipeline around a restored network, with its correction if it was saved with one."""
    record = denoiser.config["quantization_config"]
    described = record.get("correction")
    expected = PREFIX + described["pipeline"] if described else None
    found = read_json(folder / "model_index.json").get("_class_name")
    if found != (expected or found) or (described is None and str(found).startswith(PREFIX)):
        raise CheckpointError(
            f"{folder} says it is a {found}, but its record says {expected or 'no correction'}: "
            "one of the two was changed. Save it again."
        )
    if described is None:
        return open_pipeline(folder, **{component: denoiser})
    correction = restore_correction(folder, described)
    pipe = open_pipeline(folder, described["pipeline"], **{component: denoiser})
    schedule = torch.tensor(record["schedule"])
    sampler = Sampler.of(record["sampler"])
    family = family_of(pipe)
    return corrected(pipe, Corrector(correction, family, sampler, schedule, record["seed"]))


def _quantized_component(folder: Path) -> str | None:
    for component in sorted({f.component for f in FAMILIES}):
        config = folder / component / "config.json"
        if config.is_file() and "quantization_config" in read_json(config):
            return component
    return None


def _restore(folder: Path, component: str) -> nn.Module:
    """Build the network from its config, wrap it as recorded, and fill in codes and scales."""
    config = read_json(folder / component / "config.json")
    record = config.pop("quantization_config")
    _check_version(folder, record)
    try:
        denoiser = _rebuild(config, record)
        denoiser.load_state_dict(load_file(folder / component / WEIGHTS))
        found = fingerprint(denoiser, record)
    except _DAMAGE as error:
        raise CheckpointError(
            f"{folder / component} is damaged or incomplete ({error}). Save it again."
        ) from error
    if found != record.get("fingerprint"):
        raise CheckpointError(
            f"{folder / component} holds other numbers or settings than when it was saved: it "
            "was changed or damaged. Save it again."
        )
    denoiser.register_to_config(quantization_config=record)
    return denoiser.requires_grad_(False)


def _check_version(folder: Path, record: Any) -> None:
    kind, version = (
        (record.get(k) for k in ("quant_method", "version"))
        if isinstance(record, dict)
        else (record, None)
    )
    if (kind, version) != ("dqlab", SAVE_VERSION):
        raise CheckpointError(
            f"{folder} was quantized by {kind!r} version {version!r}; this dqlab reads 'dqlab' "
            f"version {SAVE_VERSION}."
        )


def _rebuild(config: dict[str, Any], record: dict[str, Any]) -> nn.Module:
    """The wrapped network as it was before its numbers were written."""
    denoiser = find_class(config["_class_name"]).from_config(config).eval()
    nn.Module.to(denoiser, getattr(torch, record["dtype"]))  # diffusers' own warns of fp32 parts
    for path, sizes in record["splits"].items():
        split_layer(denoiser.get_submodule(path), sizes, path)
    wrap_sites(denoiser, StepContext(), record["layers"], record["attentions"])
    sites = quantizers(denoiser)
    for site, described in record["formats"].items():
        sites[site].format = Format.from_dict(described)
    for site in record["per_step"]:
        sites[site].per_step = True
    denoiser.step_context.bind(torch.tensor(record["schedule"]))
    return denoiser
