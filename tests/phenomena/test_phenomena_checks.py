"""The stored side of 1.4: lines become claims."""

import pytest

from dqlab.errors import UnknownNameError
from dqlab.metrics.results import Result
from dqlab.phenomena import time_checks as checks
from dqlab.phenomena.ledger import OUTCOMES

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
