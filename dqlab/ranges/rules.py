"""Rules by name: how bounds are found from rows of values, for observers.

A rule maps rows [K, M] and a format to bounds [K], [K]. "grid" is the 1-D search; "percentile"
takes the share q = 0.999 (another one: `partial(quantile_rule, q=0.9999)`, for rules may be
functions too).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.formats import Format
from dqlab.ranges.kl import divergence_from
from dqlab.ranges.minmax import Bounds, extremes, quantiles
from dqlab.ranges.search import best_percentile, cosine_loss, gridded, power_loss, shrunk

Rule = Callable[[Tensor, Format | None], Bounds]


def min_max_rule(rows: Tensor, fmt: Format | None) -> Bounds:
    """Lowest and highest of each row; the format does not matter."""
    return extremes(rows)


def quantile_rule(rows: Tensor, fmt: Format | None, q: float = 0.999) -> Bounds:
    """Quantiles (1 - q) / 2 and (1 + q) / 2 of each row; the format does not matter."""
    return quantiles(rows, q)


RULES: dict[str, Rule] = {
    "min_max": min_max_rule,
    "percentile": quantile_rule,
    "percentile_search": best_percentile,
    "shrink": partial(shrunk, loss_of=power_loss(2.4)),
    "grid": partial(gridded, loss_of=power_loss(2.4), two=False),
    "l1": partial(shrunk, loss_of=power_loss(1.0)),
    "cosine": partial(shrunk, loss_of=cosine_loss),
    "kl": partial(shrunk, loss_of=divergence_from),
}


def rule_of(rule: str | Rule) -> Rule:
    """The rule of a name; functions pass. Raises UnknownNameError."""
    if callable(rule):
        return rule
    if rule not in RULES:
        raise UnknownNameError(f"unknown range rule {rule!r}; there are {', '.join(RULES)}")
    return RULES[rule]


def needs_format(rule: Rule) -> bool:
    """Whether bounds found by the rule belong to one format."""
    return getattr(rule, "func", rule) not in (min_max_rule, quantile_rule)


def check_format(rule: Rule, fmt: Format | None, name: str) -> None:
    """Raise InvalidInputError if the rule searches for a format and there is none."""
    if fmt is None and needs_format(rule):
        raise InvalidInputError(f"{name}: this rule searches for a format, so give fmt=...")
