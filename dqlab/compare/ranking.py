"""Several quantized pipelines against one original, ranked where that is fair."""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from dqlab.compare.comparison import Comparison, image_ratio, sqnr_gain
from dqlab.compare.entry import Entry

HEADS = ("place", "method", "noise SQNR", "behind the first", "image MSE, median", "size",
         "bit-operations")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Ranking:
    """Comparisons on the same trajectories, the best first if they can be ranked.

    Attributes:
        comparisons: one per pipeline; in the given order where they are not ranked.
        ranked: False if their policies differ, so that no order would be fair.
        by_images: ranked by the final image error, because one of them has no SQNR.
        notices: what to know before reading the order.

    """

    comparisons: tuple[Comparison, ...]
    ranked: bool
    by_images: bool
    notices: tuple[str, ...]

    @classmethod
    def of(cls, found: list[Comparison]) -> "Ranking":
        """Rank what was measured together."""
        by_images = any(c.powers is None for c in found)
        ranked = not (unfair := _policies(found))
        if ranked:
            found = sorted(found, key=lambda c: c.paired.median if by_images else -c.sqnr_db_mean)
        notices = [*unfair, *_absent(found), *_different_fits(found)]
        return cls(tuple(_named_apart(found)), ranked, by_images, tuple(notices))

    def behind(self, c: Comparison) -> Entry | None:
        """How far one is behind the first; None for the first and where there is no order."""
        first = self.comparisons[0]
        if not self.ranked or c is first:
            return None
        if self.by_images:
            return image_ratio(c, first, "image MSE over the first's")
        return sqnr_gain(c, first, "behind the first")

    def tied(self, c: Comparison) -> bool:
        """Whether the interval of the difference to the first holds no difference at all."""
        gap = self.behind(c)
        return gap is not None and gap.low <= (1.0 if self.by_images else 0.0) <= gap.high

    def rows(self) -> list[dict[str, str]]:
        """The table as text: head -> cell, one row per pipeline."""
        gains = any(c.baseline for c in self.comparisons)
        return [self._row(place, c, gains) for place, c in enumerate(self.comparisons, 1)]

    def _row(self, place: int, c: Comparison, gains: bool) -> dict[str, str]:
        gap, entries = self.behind(c), {e.measure: e for e in c.entries()}
        noise, size, ops = (entries[k] for k in (c.entries()[0].measure, "size", "bit-operations"))
        behind = "" if gap is None else f"{gap.text} {gap.interval}"
        error = entries["image MSE, median of pairs"]
        cells = (
            f"{place}{' (tied)' if self.tied(c) else ''}" if self.ranked else "not ranked",
            c.label, f"{noise.text} {noise.interval}".strip(), behind,
            f"{error.text} {error.interval}", size.text, ops.text,
        )  # fmt: skip
        row = dict(zip(HEADS, cells, strict=True))
        if gains:
            gain = c.gain()
            row["over plain rounding"] = "" if gain is None else f"{gain.text} {gain.interval}"
        for name in ("prompt shown: all", "Frechet distance"):
            if (extra := entries.get(name)) is not None:
                row[name] = f"{extra.text} {extra.interval}"
        return row

    def finding(self) -> str:
        """The result in one sentence."""
        first, *rest = self.comparisons
        if not self.ranked:
            return f"{len(self.comparisons)} pipelines, not ranked: {self.notices[0]}"
        level = [c.label for c in rest if self.tied(c)]
        entry = first.entries()[0]
        told = f"noise SQNR {entry.text} {entry.interval}"
        if self.by_images:
            told = f"median image MSE {first.paired.median:.3g}"
        tie = f"; not to be told apart from it: {', '.join(level)}" if level else ""
        return f"First of {len(self.comparisons)} is {first.label}: {told}{tie}."

    def to_frame(self) -> pd.DataFrame:
        """One row per pipeline, with numbers and their intervals."""
        rows = []
        for place, c in enumerate(self.comparisons, 1):
            gap, gain = self.behind(c), c.gain()
            row: dict[str, Any] = {"place": place if self.ranked else None, "label": c.label}
            row |= {"policy": c.info["policy"]["name"], "tied": self.tied(c)}
            row |= _triple("sqnr_db", c.entries()[0]) | _triple("behind", gap)
            row |= _triple("over_rtn", gain)
            row |= _triple("image_mse", Entry("", c.paired.median, *c.paired.interval()))
            row |= {"megabytes": c.cost.bytes / 1e6, "bit_ops": c.cost.bit_ops}
            rows.append(row)
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, JSON-able."""
        pipelines = [
            {"label": c.label, "tied_with_first": self.tied(c)} | c.to_dict()
            for c in self.comparisons
        ]
        by = "image_mse_median" if self.by_images else "sqnr_db_mean"
        return {
            "ranked_by": by if self.ranked else None,
            "notices": list(self.notices),
            "pipelines": pipelines,
        }

    def __str__(self) -> str:
        from dqlab.compare.plain import ranking_text

        return ranking_text(self)

    __repr__ = __str__

    def __rich__(self) -> Any:
        from dqlab.compare.plain import ranking_table

        return ranking_table(self)

    def _repr_html_(self) -> str:
        from dqlab.compare.page import ranking_page

        return ranking_page(self)


def _triple(name: str, entry: Entry | None) -> dict[str, float | None]:
    """Value, low and high as columns."""
    low_high = (entry.low, entry.high) if entry else (None, None)
    value = entry.value if entry else None
    return {name: value, f"{name}_low": low_high[0], f"{name}_high": low_high[1]}


def _named_apart(found: list[Comparison]) -> list[Comparison]:
    """The same, with numbers behind labels that occur twice."""
    labels = [c.label for c in found]
    seen: dict[str, int] = {}
    named = []
    for c in found:
        seen[c.label] = seen.get(c.label, 0) + 1
        twice = labels.count(c.label) > 1
        named.append(replace(c, label=f"{c.label} #{seen[c.label]}") if twice else c)
    return named


def _policies(found: list[Comparison]) -> list[str]:
    """What is unfair about an order: different sites or exceptions."""
    policies = {str(c.info["policy"]["rules"]): c.info["policy"]["name"] for c in found}
    if len(policies) == 1:
        return []
    told = ", ".join(f"{c.label}: {c.info['policy']['name']}" for c in found)
    same = " (of one name, but with different rules)" if len(set(policies.values())) == 1 else ""
    return [
        f"their policies differ{same}, so they quantize different sites or keep different ones at "
        f"8 bits ({told}). Quantize all with one policy to rank them."
    ]


def _absent(found: list[Comparison]) -> list[str]:
    """Why the order is by pictures."""
    return [f"{c.label} has no SQNR: {c.absent}" for c in found if c.absent]


def _different_fits(found: list[Comparison]) -> list[str]:
    """What differs besides the method, allowed but worth knowing."""
    differing = []
    for words, of in {
        "bits": lambda i: (i["weights"], i["activations"]),
        "profiles": lambda i: i["profile"],
        "calibration sets": lambda i: i["calibration"]["hash"],
    }.items():
        if len({of(c.info) for c in found}) > 1:
            differing.append(words)
    return [f"They also differ in {', '.join(differing)}."] if differing else []
