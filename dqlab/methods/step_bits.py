"""Activation bits chosen at every sampling step by a signal-to-noise rule (PTQD, section 3.3).

Works on the ranges that any method finds: it asks for them once per bit-width on all steps, to see
how noisy the network then is, and once more on the steps that use it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dqlab.errors import NotApplicableError
from dqlab.formats import Affine, Range
from dqlab.formats.stepped import Stepped
from dqlab.layers import Quantizer, quantizers
from dqlab.methods.job import Job
from dqlab.methods.method import Method
from dqlab.reference import ptqd as paper
from dqlab.trajectory import replay


def choose_step_bits(
    job: Job, base: Method, sites: Sequence[str], widths: tuple[int, int]
) -> list[int]:
    """Give the sites whose bits the caller chose a grid of its own size at every step.

    Args:
        job: the quantization in progress, with all ranges set.
        base: the method that finds ranges.
        sites: those whose ranges are being set.
        widths: bit-widths, the smaller first; all `sites` have the larger.

    Returns:
        The bits of every step.

    Raises:
        NotApplicableError: if the sites have no uniform asymmetric grids with one range each, or
            the sampler has no cumulative alphas to compare with.

    """
    found = quantizers(job.denoiser)
    mine = {s: found[s] for s in sites if _chosen(job, s, found[s], widths[-1])}
    cumulative = getattr(job.original.scheduler, "alphas_cumprod", None)
    if not mine or cumulative is None:
        raise NotApplicableError(
            "ptqd chooses bits by step on uniform asymmetric grids that have one range each, and "
            "for schedulers with cumulative alphas; there are none here. Leave `fewest` out."
        )
    snr_f = paper.snr_forward(cumulative[job.context.schedule.long()])
    snr_q = {b: _signal_to_noise(job, base, mine, b) for b in widths}
    bits = paper.step_aware_bits(snr_q, snr_f)
    tables = {b: _ranges(job, base, mine, b, bits) for b in sorted(set(bits))}
    for site, quantizer in mine.items():
        rows = [Stepped.of(tables[b][site], b) for b in bits]
        table = (torch.stack([getattr(r, n) for r in rows]) for n in ("scale", "zero_point"))
        quantizer.format = Stepped(widths[-1])
        quantizer.set_range(Range(*table), per_step=True)
    job.choices["step bits"] = bits
    return bits


def _chosen(job: Job, site: str, quantizer: Quantizer, bits: int) -> bool:
    fmt = quantizer.format
    uniform = isinstance(fmt, Affine) and fmt.variant == "asymmetric" and fmt.bits == bits
    asked = job.policy.rule(site).bits == "activations"
    return uniform and asked and not quantizer.per_step and quantizer.scale.ndim == 0


def _place(job: Job, base: Method, mine: dict[str, Quantizer], bits: int) -> None:
    for quantizer in mine.values():
        quantizer.format = Affine(bits)
    base.ranges(job, list(mine))


def _signal_to_noise(job: Job, base: Method, mine: dict[str, Quantizer], bits: int) -> Tensor:
    """SNR^Q of every step, `[T]`, with all of `mine` at `bits` bits."""
    _place(job, base, mine, bits)
    states = job.calibration
    eps, rows = states.guided(states.output)
    D = states.guided(replay(job.denoiser, states))[0] - eps
    at = [states.step[rows] == step for step in range(len(job.context.schedule))]
    return torch.stack([paper.snr_quantized(eps[here], D[here]) for here in at])


def _ranges(
    job: Job, base: Method, mine: dict[str, Quantizer], bits: int, chosen: list[int]
) -> dict[str, Range]:
    """Ranges at `bits` bits, calibrated on the steps that use them."""
    whole = job.calibration
    used = torch.tensor([b == bits for b in chosen])
    try:
        job.calibration = whole[used[whole.step]]
        _place(job, base, mine, bits)
    finally:
        job.calibration = whole
    return {site: quantizer.range for site, quantizer in mine.items()}
