"""`load`: open any pipeline, quantized by dqlab or not."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dqlab.errors import CheckpointError, DqlabError
from dqlab.formats import Format
from dqlab.layers import StepContext, quantizers, split_layer
from dqlab.methods.record import SAVE_VERSION, fingerprint
from dqlab.methods.run import wrap_sites
from dqlab.models.families import FAMILIES
from dqlab.models.loading import find_folder, open_pipeline, read_json, refuse_pickles


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
    return open_pipeline(folder, **{component: _restore(folder, component)})


def _quantized_component(folder: Path) -> str | None:
    for component in sorted({f.component for f in FAMILIES}):
        config = folder / component / "config.json"
        if config.is_file() and "quantization_config" in read_json(config):
            return component
    return None


def _restore(folder: Path, component: str) -> nn.Module:
    """Build the network from its config, wrap it as recorded, and fill in codes and scales."""
    import diffusers

    config = read_json(folder / component / "config.json")
    record = config.pop("quantization_config")
    if record.get("quant_method") != "dqlab" or record.get("version") != SAVE_VERSION:
        raise CheckpointError(
            f"{folder} was quantized by {record.get('quant_method')!r} version "
            f"{record.get('version')!r}; this dqlab reads 'dqlab' version {SAVE_VERSION}."
        )
    try:
        denoiser = getattr(diffusers, config["_class_name"]).from_config(config).eval()
        for path, sizes in record["splits"].items():
            split_layer(denoiser.get_submodule(path), sizes, path)
        wrap_sites(denoiser, StepContext(), record["layers"], record["attentions"])
        for site, described in record["formats"].items():
            quantizers(denoiser)[site].format = Format.from_dict(described)
        tensors = load_file(folder / component / "diffusion_pytorch_model.safetensors")
        denoiser.load_state_dict(tensors)
    except DqlabError:
        raise
    except (SafetensorError, OSError, RuntimeError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / component} is damaged or incomplete ({error}). Save it again."
        ) from error
    if fingerprint(denoiser) != record["fingerprint"]:
        raise CheckpointError(
            f"{folder / component} holds other numbers than when it was saved: it was changed "
            "or damaged. Save it again."
        )
    denoiser.step_context.bind(record["schedule"] and torch.tensor(record["schedule"]))
    denoiser.register_to_config(quantization_config=record)
    return denoiser.requires_grad_(False)
