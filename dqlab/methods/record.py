"""The record a quantized model carries: how it was made, and what restoring it takes."""

import hashlib
import json
from typing import Any

import torch
from torch import nn

from dqlab.errors import NotApplicableError
from dqlab.layers import QuantizedLayer, SplitQuantizer, quantizers
from dqlab.layers.policy import plain_bits
from dqlab.methods.correction import Correction, describe_correction
from dqlab.methods.job import Job
from dqlab.models.families import family_of
from dqlab.models.families.asked import asked
from dqlab.models.loading import record_of

SAVE_VERSION = 1


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
        "calibration": {"hash": job.calibration.hash, "rows": len(job.calibration)},
        "layers": job.anatomy.layers,
        "attentions": job.anatomy.attentions,
        "splits": splits(job.denoiser),
        "uncovered": job.anatomy.uncovered,
        "formats": {s: q.format.to_dict() for s, q in sites.items() if q.format},
        "per_step": [s for s, q in sites.items() if q.per_step],
        "dtype": str(next(job.denoiser.parameters()).dtype).removeprefix("torch."),
        "fit_seconds": round(seconds, 1),
    }
    record["fingerprint"] = fingerprint(job.denoiser, record)
    keep_record(job.denoiser, record)


def keep_record(denoiser: nn.Module, record: dict[str, Any]) -> None:
    """Leave the record with a network: in its config if diffusers made it, else beside it."""
    if hasattr(denoiser, "register_to_config"):
        denoiser.register_to_config(quantization_config=record)
    else:
        denoiser.quantization_config = record


def splits(denoiser: nn.Module) -> dict[str, list[int]]:
    """Channels of the parts of every split layer, by path."""
    return {
        path: list(module.input_quantizer.sizes)
        for path, module in denoiser.named_modules()
        if isinstance(module, QuantizedLayer)
        and isinstance(module.input_quantizer, SplitQuantizer)
    }


def fingerprint(denoiser: nn.Module, record: dict[str, Any]) -> str:
    """Short SHA-256 over all codes, ranges and parameters, by name, and the rest of the record."""
    facts = {k: v for k, v in record.items() if k not in ("fingerprint", "fit_seconds")}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(denoiser.state_dict().items()):
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode())
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()[:16]


def describe(pipe) -> dict[str, Any]:
    """How a pipeline was quantized: recipe, bits, policy, sampler, calibration; {} if not."""
    try:
        return record_of(family_of(pipe).denoiser(pipe))
    except NotApplicableError:
        return {}
