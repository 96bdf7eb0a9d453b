"""Compare notebook outputs by what they mean, so that one stored copy serves all CPUs.

nbval compares strings. Here a number of the new output takes the spelling of the stored one when
both mean the same; then nbval compares as strictly as ever. Two numbers mean the same when

* they are integers that no unit follows (a count): never, unless equal;
* ``dB`` follows: within 0.1 dB;
* else: within 1 % of the stored value.

Print measurements with three significant digits (dB with one decimal), else rounding alone may
exceed this. Cell tags change it: ``nbval-tolerance-0.001`` (relative),
``nbval-tolerance-db-0.02``, ``nbval-unit-db`` (all numbers but counts are dB, as in a table).

Plotly figures are compared number by number; arrays within the tolerance of their largest value.
Pictures and widgets cannot be compared, but one that was stored must be there again.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

UNITS = ("dB", "%", "ms", "s", "MB", "MiB", "GB", "KB", "x", "×")
UNSEEN = ("image/png", "image/jpeg", "application/vnd.jupyter.widget-view+json")
NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-+−]?)"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?P<power>[eE][-+]?\d+)?"
    rf"(?P<unit>\s?(?:{'|'.join(UNITS)})(?!\w))?(?!\w|\.\d)"
)
INLINE_PICTURE = re.compile(r"data:image/[\w+.-]+;base64,[A-Za-z0-9+/=]+")


@dataclass(frozen=True)
class Tolerance:
    """How far two numbers may lie apart and still mean the same."""

    relative: float = 0.01
    db: float = 0.1
    all_db: bool = False

    @classmethod
    def of(cls, tags: Iterable[str]) -> Tolerance:
        """Read a cell's tags; the last of a kind counts."""
        found = cls()
        for tag in tags:
            if match := re.fullmatch(r"nbval-tolerance-(db-)?([\d.e-]+)", tag):
                value = float(match[2])
                pair = (found.relative, value) if match[1] else (value, found.db)
                found = cls(*pair, found.all_db)
            elif tag == "nbval-unit-db":
                found = cls(found.relative, found.db, True)
        return found

    def same(self, test: Number, stored: Number) -> bool:
        """Whether two printed numbers mean the same."""
        if test.unit != stored.unit or test.count != stored.count:
            return False
        if stored.count:
            return test.value == stored.value
        db = self.all_db or stored.unit == "dB"
        allowed = self.db if db else self.relative * abs(stored.value)
        return abs(test.value - stored.value) <= allowed * (1 + 1e-9) + 1e-12 * abs(stored.value)


@dataclass(frozen=True)
class Number:
    """A number as printed: its value, the unit behind it, and whether it counts something."""

    text: str
    value: float
    unit: str
    count: bool

    @classmethod
    def of(cls, match: re.Match[str]) -> Number:
        """From a match of NUMBER."""
        spelled = match["sign"].replace("−", "-") + match["digits"].replace(",", "")
        unit = (match["unit"] or "").strip()
        whole = "." not in match["digits"] and not match["power"]
        return cls(match[0], float(spelled + (match["power"] or "")), unit, whole and not unit)


def split(text: str) -> tuple[list[str], list[Number]]:
    """Cut a text into numbers and what stands around them: one word more than numbers."""
    matches = list(NUMBER.finditer(text))
    edges = [0, *(edge for match in matches for edge in match.span()), len(text)]
    words = [text[edges[i] : edges[i + 1]] for i in range(0, len(edges), 2)]
    return words, [Number.of(match) for match in matches]


def reconcile_text(test: str, stored: str, tolerance: Tolerance) -> str:
    """``test`` with the stored spelling of every number that means the same.

    The space around a respelled number follows too: 9.99 and 10.01 shift a table's columns.
    """
    pictures = INLINE_PICTURE.findall(stored)
    if len(pictures) == len(INLINE_PICTURE.findall(test)):
        test = INLINE_PICTURE.sub(lambda _: pictures.pop(0), test)
    (words, numbers), (old_words, old_numbers) = split(test), split(stored)
    if len(numbers) != len(old_numbers):
        return test
    respelled = [
        old.text if tolerance.same(new, old) else new.text
        for new, old in zip(numbers, old_numbers, strict=True)
    ]
    around = [
        old if new.split() == old.split() and bool(new.strip(" ")) == bool(old.strip(" ")) else new
        for new, old in zip(words, old_words, strict=True)
    ]
    return "".join(piece for pair in zip(around, [*respelled, ""], strict=True) for piece in pair)


def reconcile_json(test: Any, stored: Any, tolerance: Tolerance) -> Any:
    """``test`` (plotly JSON) with stored values wherever both mean the same."""
    if isinstance(test, str) and isinstance(stored, str):
        return reconcile_text(test, stored, tolerance)
    arrays = _array(test), _array(stored)
    if all(array is not None for array in arrays):
        return stored if _same_array(*arrays, tolerance) else test
    if isinstance(test, dict) and isinstance(stored, dict) and test.keys() == stored.keys():
        return {key: reconcile_json(test[key], stored[key], tolerance) for key in stored}
    if isinstance(test, list) and isinstance(stored, list) and len(test) == len(stored):
        pairs = zip(test, stored, strict=True)
        return [reconcile_json(new, old, tolerance) for new, old in pairs]
    return test


def _array(value: Any) -> np.ndarray | None:
    """Numbers, nested lists of numbers, and plotly's base64 arrays as an array; else None."""
    if isinstance(value, dict) and {"dtype", "bdata"} <= value.keys():
        flat = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
        shape = value.get("shape", str(flat.size))
        return flat.reshape([int(size) for size in str(shape).split(",")]).astype(float)
    if not _numeric(value):
        return None
    try:
        return np.asarray(value, dtype=float)
    except ValueError:
        return None


def _numeric(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_numeric(one) for one in value)
    return isinstance(value, Real) and not isinstance(value, bool)


def _same_array(test: np.ndarray, stored: np.ndarray, tolerance: Tolerance) -> bool:
    if test.shape != stored.shape:
        return False
    finite = stored[np.isfinite(stored)]
    scale = float(np.abs(finite).max()) if finite.size else 0.0
    return bool(np.allclose(test, stored, rtol=0, atol=tolerance.relative * scale, equal_nan=True))


def reconcile_output(test: dict, stored: dict, tolerance: Tolerance) -> dict:
    """One output with the stored spelling, part by part."""
    if test.get("output_type") == "stream" == stored.get("output_type"):
        return type(test)(test | {"text": reconcile_text(test["text"], stored["text"], tolerance)})
    if "data" not in test or "data" not in stored:
        return test
    data = {
        kind: reconcile_json(value, stored["data"][kind], tolerance)
        if kind in stored["data"] and kind not in UNSEEN
        else value
        for kind, value in test["data"].items()
    }
    return type(test)(test | {"data": data})


def announce(output: dict) -> dict:
    """Add a comparable line for each part that nbval leaves out, so that a loss is seen."""
    present = {f"{kind} is there": "yes" for kind in UNSEEN if kind in output.get("data", {})}
    return type(output)(output | {"data": output["data"] | present}) if present else output


def reconcile(test: list[dict], stored: list[dict], tolerance: Tolerance) -> list[dict]:
    """All outputs of a cell; left alone where their numbers differ, for nbval to report."""
    if len(test) != len(stored):
        return test
    return [reconcile_output(new, old, tolerance) for new, old in zip(test, stored, strict=True)]


def by_meaning(compare: Callable[..., bool]) -> Callable[..., bool]:
    """Wrap ``IPyNbCell.compare_outputs(self, test, ref, skip_compare)``."""

    def compare_outputs(
        self: Any, test: list[dict], ref: list[dict], skip_compare: Any = None
    ) -> bool:
        tolerance = Tolerance.of(self.cell.metadata.get("tags", []))
        new = reconcile(test, ref, tolerance)
        return compare(self, [*map(announce, new)], [*map(announce, ref)], skip_compare)

    compare_outputs.by_meaning = True
    return compare_outputs


def install() -> None:
    """Make nbval compare by meaning in this process; twice is once."""
    from nbval.plugin import IPyNbCell

    if not hasattr(IPyNbCell.compare_outputs, "by_meaning"):
        IPyNbCell.compare_outputs = by_meaning(IPyNbCell.compare_outputs)
