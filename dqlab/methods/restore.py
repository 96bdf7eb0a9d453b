"""`load`: open any pipeline, quantized by dqlab or not."""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dqlab.errors import CheckpointError, InvalidInputError
from dqlab.formats import Format
from dqlab.layers import StepContext, quantizers, split_layer
from dqlab.layers.smooth import expect_divisor
from dqlab.layers.table import expect_table
from dqlab.methods.corrected import PREFIX, corrected
from dqlab.methods.correction import restore_correction
from dqlab.methods.corrector import Corrector
from dqlab.methods.record import SAVE_VERSION, attach_record, fingerprint
from dqlab.methods.registry import all_methods
from dqlab.methods.run import wrap_sites
from dqlab.models.families import FAMILIES, BareModel, Sampler, ask, family_of
from dqlab.models.loading import (
    BARE,
    WEIGHTS,
    check_options,
    find_class,
    locate,
    open_folder,
    read_json,
    record_of,
)


def load(name: str | Path, *, into: BareModel | None = None, **options: Any):
    """A pipeline from a shipped name ("pixel-unet"), a diffusers folder, or a hub id.

    A folder written by a quantized pipeline's `save_pretrained` comes back quantized and gives
    identical outputs.

    Args:
        name: what to open. From the hub come configs and safetensors alone.
        into: the unquantized `wrap_module(...)` that a saved network without pipeline belongs to.
        options: dtype, variant, revision, cache_dir, token, as diffusers knows them.

    Raises:
        UnknownNameError: if there is no such model; says what there is.
        InvalidInputError: if `name` is neither text nor a path, or for other options.
        CheckpointError: if the folder is damaged, holds pickled files, or is from another version.

    """
    check_options(options)
    try:
        folder = locate(name, options)
    except (TypeError, OSError) as error:  # no path at all, or none the file system can hold
        raise InvalidInputError(
            f"Cannot load {str(name)[:80]!r} ({error.__class__.__name__}); give a shipped name, "
            "the path of a folder, or a hub id."
        ) from error
    component = _quantized_component(folder)
    if into is not None or component == BARE:
        return _open_bare(folder, component, into)
    if component is None:
        return open_folder(folder, options)
    all_methods()  # formats and corrections of methods are known once their modules are loaded
    return _open_quantized(folder, component, options)


def _open_bare(folder: Path, component: str | None, into: BareModel | None) -> BareModel:
    if component != BARE or not isinstance(into, BareModel):
        raise CheckpointError(
            f"{folder} and into={type(into).__name__} do not belong together: load(folder, "
            "into=dqlab.wrap_module(network, sample)) opens what such a model's save_pretrained "
            "wrote, and nothing else."
        )
    all_methods()
    result = copy.copy(into)
    result.register_modules(_restore(folder, BARE, copy.deepcopy(into.denoiser)))
    return result


def _open_quantized(folder: Path, component: str, options: dict[str, Any]):
    """The pipeline around a restored network, with its correction if it was saved with one."""
    denoiser = _restore(folder, component)
    record = record_of(denoiser)
    described = record.get("correction")
    expected = PREFIX + described["pipeline"] if described else None
    found = read_json(folder / "model_index.json").get("_class_name")
    if found != (expected or found) or (described is None and str(found).startswith(PREFIX)):
        raise CheckpointError(
            f"{folder} says it is a {found}, but its record says {expected or 'no correction'}: "
            "one of the two was changed. Save it again."
        )
    if described is None:
        pipe = open_folder(folder, options, **{component: denoiser})
        return ask(pipe, **record["asked"])
    correction = restore_correction(folder, described)
    pipe = open_folder(folder, options, described["pipeline"], **{component: denoiser})
    pipe = ask(pipe, **record["asked"])
    schedule = torch.tensor(record["schedule"])
    sampler = Sampler.of(record["sampler"])
    family = family_of(pipe)
    return corrected(pipe, Corrector(correction, family, sampler, schedule, record["seed"]))


def _quantized_component(folder: Path) -> str | None:
    for component in sorted({BARE, *(f.component for f in FAMILIES)}):
        config = folder / component / "config.json"
        if config.is_file() and "quantization_config" in read_json(config):
            return component
    return None


def _restore(folder: Path, component: str, plain: nn.Module | None = None) -> nn.Module:
    """Build the network (or take it as it is), wrap it as recorded, fill in codes and scales."""
    config = read_json(folder / component / "config.json")
    record = config.pop("quantization_config")
    _check_version(folder, record)
    try:
        denoiser = _wrapped(plain or _built(config), record)
        denoiser.load_state_dict(_tensors(folder / component))
        found = fingerprint(denoiser, record)
    except Exception as error:  # whatever diffusers raises on settings it cannot build from
        raise CheckpointError(
            f"{folder / component} is damaged or incomplete ({error}). Save it again."
        ) from error
    if found != record.get("fingerprint"):
        raise CheckpointError(
            f"{folder / component} holds other numbers or settings than when it was saved: it "
            "was changed or damaged. Save it again."
        )
    attach_record(denoiser, record)
    return denoiser.requires_grad_(False)


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All of a component's tensors, from one file or from the shards its index lists."""
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return load_file(folder / WEIGHTS)
    found: dict[str, Tensor] = {}
    for name in sorted(set(read_json(index)["weight_map"].values())):
        found |= load_file(folder / Path(name).name)
    return found


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


def _built(config: dict[str, Any]) -> nn.Module:
    """The plain network, not yet with its numbers."""
    return find_class(config["_class_name"]).from_config(config).eval()


def _wrapped(denoiser: nn.Module, record: dict[str, Any]) -> nn.Module:
    """The network wrapped as it was before its numbers were written."""
    nn.Module.to(denoiser, getattr(torch, record["dtype"]))  # diffusers' own warns of fp32 parts
    for path, sizes in record["splits"].items():
        split_layer(denoiser.get_submodule(path), sizes, path)
    for path in record.get("smoothed", []):  # none in older saves
        expect_divisor(denoiser.get_submodule(path), path in record.get("shifted", []))
    wrap_sites(denoiser, StepContext(), record["layers"], record["attentions"])
    for path, shape in record.get("tables", {}).items():
        expect_table(denoiser.get_submodule(path), shape)
    sites = quantizers(denoiser)
    for site, described in record["formats"].items():
        sites[site].format = Format.from_dict(described)
    for site in record["per_step"]:
        sites[site].per_step = True
    for site, over in record.get("measured", {}).items():  # none in older saves
        sites[site].measure(over)
    for site, frames in record.get("per_frame", {}).items():
        sites[site].frames = frames
    denoiser.step_context.bind(torch.tensor(record["schedule"]))
    return denoiser
