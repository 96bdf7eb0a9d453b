"""The arguments of a denoiser call as flat names, and which of them have rows.

Nested dicts are named with dots: `added_cond_kwargs.time_ids`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from dqlab.errors import NotApplicableError

CLOSE = 1e-2
"""Relative error within which two answers count as the same; half precision needs this much."""


def flatten(arguments: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, names joined by dots; an empty dict stays a value."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        nested = isinstance(value, dict) and value
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The nested dicts that `flatten` took apart."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *outer, last = path.split(".")
        place = nested
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    return nested


def take_rows(x: Tensor, rows: Tensor | slice, count: int) -> Tensor:
    """The chosen ones of `count` states from a tensor that has one or several rows for each."""
    per_state = len(x) // count if count else 1
    if per_state == 1:
        return x[rows]
    return x.unflatten(0, (count, per_state))[rows].flatten(0, 1)


def with_rows(
    ask: Callable[[Tensor, dict[str, Any]], Tensor], answer: Tensor, arguments: dict[str, Any]
) -> frozenset[str]:
    """Names of the arguments that have one or several rows per state; the others have none.

    Only tensors as long as a multiple of the batch can have; of those, the network decides. It is
    asked about another number of rows, and tensors that it then refuses to take in pieces, or
    answers differently for, are whole: position ids, say, which Flux takes without a batch.

    Args:
        ask: the network's answer on the chosen rows, given all other arguments.
        answer: what it answered on all `[N, ...]` rows.
        arguments: all others of that call, flat.

    Raises:
        NotApplicableError: if no assignment makes the network run.

    """
    count = len(answer)
    rows = torch.tensor([count - 1] if count > 1 else [0, 0], device=answer.device)
    possible = [name for name, value in arguments.items() if _divisible(value, count)]
    found: list[tuple[float, frozenset[str]]] = []
    for chosen in _largest_first(possible) if possible else ():
        part = pick(arguments, chosen, rows, count)
        try:
            again = ask(rows, part)
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue
        found.append((_distance(again, answer[rows]), chosen))
        if found[-1][0] < CLOSE:
            break
    if possible and not found:
        raise NotApplicableError(
            f"The network does not run on single rows of what it was asked, so nothing says which "
            f"of {', '.join(possible)} have a row for every picture. Its other arguments must not "
            "depend on the batch."
        )
    return min(found, key=lambda each: each[0])[1] if found else frozenset()


def pick(
    arguments: dict[str, Any], chosen: Collection[str], rows: Tensor | slice, count: int
) -> dict[str, Any]:
    """Flat arguments with `rows` taken of the chosen ones."""
    return {
        name: take_rows(value, rows, count) if name in chosen else value
        for name, value in arguments.items()
    }


def same(one: Any, other: Any) -> bool:
    """Whether two constant arguments are the same value, containers looked into."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool((one == other).all())
    if isinstance(one, list | tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(same, one, other))
    return one is other or (type(one) is type(other) and bool(one == other))


def _divisible(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) > 0 == len(value) % count


def _largest_first(names: list[str]) -> Iterator[frozenset[str]]:
    """All subsets, the larger ones first."""
    for size in range(len(names), -1, -1):
        yield from map(frozenset, combinations(names, size))


def _distance(one: Tensor, other: Tensor) -> float:
    """Relative error; infinite where shapes differ or numbers are none."""
    if one.shape != other.shape:
        return torch.inf
    error = float((one - other).float().norm() / other.float().norm().clamp(min=1e-30))
    return error if error == error else torch.inf
