"""The record a quantized model carries: how it was made, and what restoring it takes."""

import functools
import hashlib
import json
from typing import Any

import torch
from torch import nn

from dqlab import __version__
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.layers import QuantizedLayer, SplitQuantizer, quantizers
from dqlab.layers.policy import plain_bits
from dqlab.layers.smooth import shifted, smoothed
from dqlab.layers.table import tables
from dqlab.methods.correction import Correction, describe_correction
from dqlab.methods.job import Job
from dqlab.models.families import family_of
from dqlab.models.families.asked import asked
from dqlab.models.loading import record_of, write_network

SAVE_VERSION = 2


def write_record(job: Job, seconds: float, correction: Correction | None = None) -> None:
    """Put the record into the denoiser's config, where diffusers saves it."""
    schedule, sites = job.context.schedule, quantizers(job.denoiser)
    record = {
        "quant_method": "dqlab",
        "version": SAVE_VERSION,
        "recipe": job.recipe.to_dict(),
        "weights": plain_bits(job.weights),
        "activations": plain_bits(job.activations),
        "policy": job.policy.to_dict(),
        "sampler": dict(vars(job.sampler)),
        "schedule": schedule.tolist(),
        "asked": asked(job.original),
        "predicts": job.family.predicts(job.original),
        "correction": correction and describe_correction(type(job.original), correction),
        "profile": job.profile,
        "seed": job.seed,
        "choices": json.loads(json.dumps(job.choices)),  # as it will come back
        "calibration": {"hash": job.calibration.hash, "rows": len(job.calibration)},
        "layers": job.anatomy.layers,
        "attentions": job.anatomy.attentions,
        "splits": splits(job.denoiser),
        "smoothed": smoothed(job.denoiser),
        "shifted": shifted(job.denoiser),
        "tables": tables(job.denoiser),
        "uncovered": job.anatomy.uncovered,
        "formats": {s: q.format.to_dict() for s, q in sites.items() if q.format},
        "per_step": [s for s, q in sites.items() if q.per_step],
        "measured": {s: q.measured for s, q in sites.items() if q.measured},
        "per_frame": {s: q.frames for s, q in sites.items() if q.frames},
        "dtype": _dtype(job.denoiser),
        "fit_seconds": round(seconds, 1),
    }
    record["fingerprint"] = fingerprint(job.denoiser, record)
    attach_record(job.denoiser, record)


def attach_record(denoiser: nn.Module, record: dict[str, Any]) -> None:
    """Leave a record with the denoiser; saving brings it up to date from then on."""
    denoiser.__class__ = _saving_class(type(denoiser))
    _keep(denoiser, record)


def _keep(denoiser: nn.Module, record: dict[str, Any]) -> None:
    """In its config if diffusers made it, else beside it."""
    if hasattr(denoiser, "register_to_config"):
        denoiser.register_to_config(quantization_config=record)
    else:
        denoiser.quantization_config = record


def _dtype(denoiser: nn.Module) -> str:
    found = getattr(denoiser, "dtype", None) or next(denoiser.parameters()).dtype
    return str(found).removeprefix("torch.")


def _refresh(denoiser: nn.Module) -> None:
    """Let the fingerprint be that of the numbers as they are.

    Raises:
        InvalidInputError: if they were cast, which rounds ranges off their codes.

    """
    record = record_of(denoiser)
    if (found := _dtype(denoiser)) != record["dtype"]:
        raise InvalidInputError(
            f"This network was cast from {record['dtype']} to {found} after it was quantized, so "
            "its ranges no longer fit its codes. Save it before casting, or cast the original "
            "and quantize that."
        )
    record["fingerprint"] = fingerprint(denoiser, record)
    _keep(denoiser, record)


@functools.cache
def _saving_class(base: type) -> type:
    """`base`, by name too, whose record is brought up to date when it is saved."""
    if getattr(base, "saves_record", False):
        return base
    write = getattr(base, "save_pretrained", write_network)

    @functools.wraps(write)
    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        _refresh(self)
        write(self, *args, **kwargs)

    body = {
        "save_pretrained": save_pretrained,
        "saves_record": True,
        "__module__": base.__module__,
    }
    return type(base.__name__, (base,), body)


def job_name(job: Job) -> str:
    """A name for the state of this job that no job has which differs in anything."""
    facts = {
        "dqlab": __version__,
        "pipeline": type(job.original).__name__,
        "recipe": job.recipe.to_dict(),
        "weights": plain_bits(job.weights),
        "activations": plain_bits(job.activations),
        "policy": job.policy.to_dict(),
        "sampler": vars(job.sampler),
        "profile": job.profile,
        "seed": job.seed,
        "calibration": job.calibration.hash,
    }
    return fingerprint(job.denoiser, facts)


def splits(denoiser: nn.Module) -> dict[str, list[int]]:
    """Channels of the parts of every split layer, by path."""
    return {
        path: list(module.input_quantizer.sizes)
        for path, module in denoiser.named_modules()
        if isinstance(module, QuantizedLayer)
        and isinstance(module.input_quantizer, SplitQuantizer)
    }


def fingerprint(denoiser: nn.Module, record: dict[str, Any]) -> str:
    """Short SHA-256 over all codes, ranges, parameters, settings and the rest of the record."""
    facts = {k: v for k, v in record.items() if k not in ("fingerprint", "fit_seconds")}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(architecture(denoiser).encode())
    for name, tensor in sorted(denoiser.state_dict().items()):
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode())
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()[:16]


def architecture(denoiser: nn.Module) -> str:
    """The denoiser's configuration, comparable between one built here and one loaded."""
    if hasattr(denoiser, "register_to_config"):
        found = {k: v for k, v in denoiser.config.items() if k[0] != "_"}
        found.pop("quantization_config", None)
    else:
        found = {name: tuple(p.shape) for name, p in denoiser.named_parameters()}
    return json.dumps(found, sort_keys=True, default=str)


def describe(pipe) -> dict[str, Any]:
    """How a pipeline was quantized: recipe, bits, policy, sampler, calibration; {} if not."""
    try:
        return record_of(family_of(pipe).denoiser(pipe))
    except NotApplicableError:
        return {}
