"""The stored side of 1.4: lines become claims."""

from dataclasses import replace

import pandas as pd
import pytest

from dqlab.errors import UnknownNameError
from dqlab.metrics.results import Result
from dqlab.phenomena import time_checks as checks
from dqlab.phenomena.ledger import OUTCOMES, Claim

CHECK = checks.Check("it helps", "", "m", (4, 8), "with", "gain", "without", 1.0)


def line(recipe="with", value=2.0, interval=(1.5, 2.5), metric="gain", against="without"):
    return Result(
        "m", recipe, 4, 8, "common", {}, metric, "dB", value, interval, (0, 1), against,
        {"model": "0"}, commit="c", machine="x", date="2026-01-01",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "interval", "outcome"),
    [(2.0, (1.5, 2.5), 0), (0.5, (0.1, 0.9), 1), (0.5, (-0.1, 1.1), 2), (-3.0, None, 2)],
)
def test_a_line_decides_a_check(value, interval, outcome) -> None:
    found = checks.claim([line(value=value, interval=interval)], CHECK)
    assert found.outcome == OUTCOMES[outcome] and found.measured == value


def test_the_latest_line_of_a_kind_counts() -> None:
    found = [line(value=9.0), line(), line("other", 5.0), line(metric="share", value=7.0)]
    assert checks.claim(found, CHECK).measured == 2.0


def test_a_missing_line_is_named() -> None:
    with pytest.raises(UnknownNameError, match="No line has W4A8 gain of 'with' on m"):
        checks.claim([line("other")], CHECK)
    with pytest.raises(UnknownNameError, match="there is W4A8 share"):
        checks.claim([line(metric="share")], CHECK)


def test_every_check_has_a_line_or_is_named_as_missing() -> None:
    lines = checks.lines()
    found, every = checks.of_tfmq(lines) | checks.of_qvd(lines), checks.TFMQ | checks.QVD
    missing = checks.missing(lines)
    assert found.keys() - {"frames"} == {k for k, c in every.items() if c.says not in missing}
    assert len(every) == len(found) - 1 + len(missing)
    assert all(c.low <= c.measured <= c.high for c in found.values())
    told = checks.tally(found)
    assert sum(int(part.split()[0]) for part in told.split(", ")) == len(found)
    assert f"{len(lines)} lines" in checks.told(lines)


def test_alphas_of_whole_lines() -> None:
    table = checks.alphas(checks.lines(), (8, 8)).set_index("alpha")
    assert table.loc["none", "gain"] == 0
    assert table.loc["hindsight", "db"] >= table["db"].max()


def test_words_say_how_many_seeds_a_number_is_over() -> None:
    assert checks.claim([line()], CHECK).says == "it helps (1 seeds)"
    bracket = replace(CHECK, says="it helps (eps, W4A8)")
    assert checks.claim([line()], bracket).says == "it helps (eps, W4A8, 1 seeds)"
    layers = replace(CHECK, metric="layer_gain_db")
    assert checks.claim([line(metric="layer_gain_db")], layers).says == "it helps"


def grid_of(gains: dict[tuple[str, str], float], half: float = 0.1) -> pd.DataFrame:
    rows = [(t, s, 20 + g, g, g - half, g + half) for (t, s), g in gains.items()]
    return pd.DataFrame(rows, columns=["temporal", "scope", "db", "gain", "low", "high"])


ARMS = [(t, s) for t in ("nearest", "tiar") for s in ("none", "tib", "all")]


@pytest.mark.parametrize(
    ("gains", "key"),
    [
        ((0, 1, 2, 1, 2, 3), "holds"),
        ((0, 0.05, 0, 0.05, 0, 0.05), "noise"),
        ((0, 1, 0, 1, 2, 1), "mixed"),
    ],
)
def test_parts_that_are_added_help_or_not(gains, key) -> None:
    found = checks.monotone(grid_of(dict(zip(ARMS, gains, strict=True))))
    assert found.key == key and "Of 7 additions" in found.words


def test_the_ablation_has_all_six_arms() -> None:
    table = checks.ablation(checks.lines())
    assert list(zip(table["temporal"], table["scope"], strict=True)) == ARMS
    assert table["gain"].iloc[0] == 0 and (table["low"] <= table["high"]).all()


@pytest.mark.parametrize(
    ("wide", "narrow", "key"),
    [((2, 4), (-3, -1), "holds"), ((2, 4), (-1, 3), "weaker"), ((2, 4), (1, 3), "opposite"),
     ((-1, 1), (-2, -1), "opposite")],
)  # fmt: skip
def test_the_see_saw_between_activations_and_weights(monkeypatch, wide, narrow, key) -> None:
    ends = {checks.QVD["scri"]: wide, checks.HEAVY: narrow}

    def claim(found, check):
        low, high = ends[check]
        return Claim(check.says, "", (low + high) / 2, low, high, "dB", check.full)

    monkeypatch.setattr(checks, "claim", claim)
    found = checks.see_saw([])
    assert found.key == key and f"{sum(wide) / 2:+.1f} dB" in found.words


def test_lines_of_other_weights_are_named() -> None:
    assert checks.stale([line()], {"m": "0"}) == ""
    assert "again: 1 of m." in checks.stale([line()], {"m": "1"})
    newer = replace(line(), hashes={"model": "1"})
    assert checks.stale([line(), newer], {"m": "1"}) == ""
