"""Names of formats: `parse` reads what `Format.name` writes, and a bare number of bits."""

from __future__ import annotations

import re
from collections.abc import Callable

from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.formats.affine import SUFFIXES, Affine
from dqlab.formats.base import Format
from dqlab.formats.binary import Binary
from dqlab.formats.codebook import Codebook
from dqlab.formats.float import USUAL, Float
from dqlab.formats.log2 import Log2
from dqlab.formats.logtau import LogTau

KNOWN = (
    "a number of bits from 1 to 16 (asymmetric affine), uint8, uint8-offset, uint8-zero, int8, "
    "int8-narrow (any of them with 1 to 16 bits), fp4, fp6, fp8, fp4-e1m2, fp4-e3m0, fp8-e5m2, "
    "log2-4, log2-4-signed (1 to 8 bits), logtau-4-6 (3 to 8 bits, octaves), codebook(-1,0,1), "
    "binary"
)
VARIANTS = {style: variant for variant, style in SUFFIXES.items()}
BARE_FLOATS = {name: layout for layout, name in USUAL.items()}


def parse(spec: int | str | Format) -> Format:
    """The format that a number of bits, a name such as "int4" or "fp4", or a format stands for.

    A number means canonical asymmetric affine. Case and outer blanks do not matter.
    Raises UnknownNameError, listing what exists, for anything else; InvalidInputError for a known
    kind with impossible numbers, such as uint40.
    """
    if isinstance(spec, Format):
        return spec
    if isinstance(spec, int) and not isinstance(spec, bool):
        return Affine(spec)
    if isinstance(spec, str):
        text = spec.strip().lower()
        for pattern, build in PATTERNS.items():
            if match := re.fullmatch(pattern, text):
                return build(match)
    raise UnknownNameError(f"unknown number format {spec!r}; there are: {KNOWN}")


def _affine(match: re.Match[str]) -> Format:
    style = (match[1] == "int", match[3])
    if style not in VARIANTS:
        raise UnknownNameError(f"unknown number format {match[0]!r}; there are: {KNOWN}")
    return Affine(int(match[2]), VARIANTS[style])


def _float(match: re.Match[str]) -> Format:
    made = Float(int(match[2]), int(match[3]))
    if made.bits != int(match[1]):
        raise InvalidInputError(
            f"{match[0]!r} has 1 + {match[2]} + {match[3]} = {made.bits} bits, not {match[1]}"
        )
    return made


def _codebook(match: re.Match[str]) -> Format:
    try:
        return Codebook(tuple(float(v) for v in match[1].split(",")))
    except ValueError as error:
        raise InvalidInputError(
            f"{match[0]!r} must list numbers with commas, such as codebook(-1,0,1): {error}"
        ) from error


PATTERNS: dict[str, Callable[[re.Match[str]], Format]] = {
    r"(u?int)(\d+)(|-offset|-zero|-narrow)": _affine,
    r"fp(\d+)-e(\d+)m(\d+)": _float,
    "|".join(BARE_FLOATS): lambda match: Float(*BARE_FLOATS[match[0]]),
    r"log2-(\d+)(-signed)?": lambda match: Log2(int(match[1]), bool(match[2])),
    r"logtau-(\d+)-(\d+)": lambda match: LogTau(int(match[1]), int(match[2])),
    r"codebook\((.*)\)": _codebook,
    r"binary": lambda match: Binary(),
}
