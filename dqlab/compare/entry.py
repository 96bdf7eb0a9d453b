"""One measured quantity as people read it: value, interval, unit, and what it means."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        measure: what was measured.
        value: the number; None where it does not exist.
        low, high: its 95 % interval; None where the number is exact.
        unit: "dB", "share", "MB", "bit-ops", "x" for a ratio, or "".
        note: what an exact copy gives, how it is defined, or why there is no number.

    """

    measure: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def text(self) -> str:
        """Value and unit."""
        return "none" if self.value is None else f"{_digits(self.value, self.unit)}{self._tail()}"

    @property
    def interval(self) -> str:
        """Such as "[19.1, 20.3]"; "exact" where nothing was sampled."""
        if self.value is None:
            return ""
        if self.low is None or self.high is None:
            return "exact"
        per_cent = self._tail() if self.unit == "share" else ""
        return f"[{_digits(self.low, self.unit)}, {_digits(self.high, self.unit)}]{per_cent}"

    def _tail(self) -> str:
        return {"": "", "share": " %", "bit-ops": ""}.get(self.unit, f" {self.unit}")


def _digits(value: float, unit: str) -> str:
    """As many digits as the unit deserves."""
    if not math.isfinite(value):
        return str(value)
    if unit == "share":
        return f"{100 * value:.0f}"
    if unit in ("dB", "MB"):
        return f"{value:.{1 if unit == 'dB' else 2}f}"
    return f"{value:.3g}"


def finite(x: float | None) -> float | None:
    """`x`, or None for what JSON cannot hold."""
    return x if x is not None and math.isfinite(x) else None
