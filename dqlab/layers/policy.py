"""Policies: which sites are quantized, and to how many bits, as plain printable data."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from dqlab.errors import DqlabError, InvalidInputError
from dqlab.formats import Affine, Format, parse

Bits = int | float | str | Format | None


@dataclass(frozen=True)
class Rule:
    """Sites whose name matches `pattern` (shell wildcards) get `bits`.

    `bits` is "weights" or "activations" for what the caller asks, a number or format name, or
    None for full precision.
    """

    pattern: str
    bits: Bits
    why: str = ""

    def asked(self, weights: Bits, activations: Bits) -> Bits:
        """The bits, given what the caller wants for weights and activations."""
        if isinstance(self.bits, str) and self.bits in ("weights", "activations"):
            return weights if self.bits == "weights" else activations
        return self.bits


@dataclass(frozen=True)
class Policy:
    """Rules tried in order; the first that matches a site's name decides."""

    name: str
    rules: tuple[Rule, ...]

    def format(self, site: str, weights: Bits, activations: Bits) -> Format | None:
        """The number format at `site`, or None for full precision."""
        if (activations if _is_activation(site) else weights) is None:
            return None
        bits = self.rule(site).asked(weights, activations)
        return None if bits is None else _format(site, bits)

    def rule(self, site: str) -> Rule:
        """The rule that decides about `site`."""
        for rule in self.rules:
            if fnmatchcase(site, rule.pattern):
                return rule
        raise InvalidInputError(f"Policy {self.name!r} has no rule for site {site!r}; add one.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        rules = [
            {"pattern": r.pattern, "bits": plain_bits(r.bits), "why": r.why} for r in self.rules
        ]
        return {"name": self.name, "rules": rules}

    def check(self, weights: Bits, activations: Bits) -> None:
        """Raise InvalidInputError or UnknownNameError if a rule asks for an impossible format."""
        for rule in self.rules:
            bits = rule.asked(weights, activations)
            if bits is not None and not isinstance(bits, float):  # averages: the method decides
                _format(rule.pattern, bits)

    def __str__(self) -> str:
        lines = [f"{r.pattern:28} {r.bits!s:12} {r.why}" for r in self.rules]
        return "\n".join([f"policy {self.name!r}: first match decides", *lines])


def plain_bits(bits: Bits) -> int | float | str | None:
    """The same as a number or name, which JSON can hold."""
    return bits.name if isinstance(bits, Format) else bits


def _is_activation(site: str) -> bool:
    return not site.split("[")[0].endswith(".weight")


def _format(site: str, bits: Bits) -> Format:
    """An int means canonical affine; the softmax output is never negative: no zero point."""
    try:
        if site.endswith(".p") and isinstance(bits, int):
            return Affine(bits, "always_zero")
        return parse(bits)
    except DqlabError as error:
        raise type(error)(f"At {site}: {error}") from error


def common_policy(first: str, last: str, softmax: Bits = 8) -> Policy:
    """The policy of every comparison between methods.

    All Conv and Linear weights and inputs, Q, K and V as asked; the softmax output unsigned with
    `softmax` bits; the first and last layer at 8 bits ("" where a model has no such). Norms,
    activation functions, additions and biases stay in full precision.
    """
    edges = [Rule(f"{layer}.*", 8, "first and last layer") for layer in (first, last) if layer]
    rules = [
        *edges,
        Rule("*.p", softmax, "softmax output, in [0, 1]"),
        Rule("*.weight*", "weights"),
        Rule("*", "activations"),
    ]
    return Policy("common", tuple(rules))


def policy_from_dict(described: dict[str, Any]) -> Policy:
    """Inverse of `Policy.to_dict`."""
    return Policy(described["name"], tuple(Rule(**r) for r in described["rules"]))
