"""What rounding takes from softmax outputs, and what a constant gives back.

A row of N probabilities sums to 1. On 2^b levels over [0, 1] the small ones become 0, so that the
row sums to less, or to more where many lie just above half a step. What decides is N / 2^b, keys
per level (Pandey et al., ICCV workshop 2023, arXiv 2309.01729).
"""

from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor

from dqlab.layers import quantizers
from dqlab.layers.policy import Policy, Rule
from dqlab.metrics import to_db
from dqlab.phenomena.drift import watchable
from dqlab.reference import softmax_bias_correction as paper
from dqlab.trajectory import States, replay, tapped

ROWS = 512
"""Rows of each attention that are kept for pictures."""


def softmax_only(bits: int) -> Policy:
    """Softmax outputs in bits, everything else in full precision."""
    return Policy("softmax only", (Rule("*.p", bits), Rule("*", None)))


def quantized(P: Tensor, bits: int) -> Tensor:
    """Probabilities on 2^bits levels over [0, 1]."""
    return paper.quantize(P, 1 / (2**bits - 1), bits)


def softmax_outputs(pipe, states: States) -> dict[str, Tensor]:
    """Some rows `[ROWS, N]` of every attention's first head, by site, on recorded states."""
    watched, found = watchable(pipe, states), {}
    model = watched.unet
    sites = [name for name in quantizers(model) if name.endswith(".p")]

    def see(site: str, P: Tensor) -> None:
        found.setdefault(site, []).append(P[:, 0].flatten(0, 1))

    with tapped(model, sites, see):
        replay(model, states)
    return {site: _some(torch.cat(parts)) for site, parts in found.items()}


def _some(rows: Tensor) -> Tensor:
    return rows[torch.linspace(0, len(rows) - 1, min(ROWS, len(rows))).long()].clone()


def synthetic(keys: int, spread: float, rows: int = 512, width: int = 16) -> tuple[Tensor, Tensor]:
    """Made-up attention: P `[rows, keys]` of logits N(0, spread^2), V `[keys, width]`."""
    generator = torch.Generator().manual_seed(0)
    P = (torch.randn(rows, keys, generator=generator) * spread).softmax(-1)
    return P, torch.randn(keys, width, generator=generator) + 1


def attention_db(P: Tensor, V: Tensor, bits: int, delta: Tensor | float = 0.0) -> float:
    """SQNR of P V with P on 2^bits levels and `delta` of mass given back to every row."""
    exact = P @ V
    made = paper.corrected(quantized(P, bits), torch.as_tensor(delta)) @ V
    return float(to_db(exact.square().sum(), (made - exact).square().sum()))


def synthetic_gain(settings: Iterable[tuple[int, int]], spread: float = 1.0) -> pd.DataFrame:
    """Gain of the correction in made-up attention, measured on other rows than delta.

    Args:
        settings: (keys, bits) each.
        spread: of the logits.

    Returns:
        Columns keys, bits, ratio (keys / 2^bits), zeros (share), row_sum, gain (dB).

    """
    rows = []
    for keys, bits in settings:
        P, V = synthetic(keys, spread)
        seen, new = P[::2], P[1::2]
        delta = paper.lost_mass(quantized(seen, bits))
        gain = attention_db(new, V, bits, delta) - attention_db(new, V, bits)
        facts = mass_facts(new, bits)
        rows.append((keys, bits, keys / 2**bits, facts["zeros"], facts["row_sum"], gain))
    return pd.DataFrame(rows, columns=["keys", "bits", "ratio", "zeros", "row_sum", "gain"])


def mass_facts(P: Tensor, bits: int) -> dict[str, float]:
    """Share of probabilities that become 0, and the mean row sum that is left."""
    Pq = quantized(P, bits)
    return {"zeros": float((Pq == 0).double().mean()), "row_sum": float(Pq.sum(-1).mean())}
