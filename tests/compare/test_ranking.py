"""Several comparisons: who comes first, who is tied, and when there is no order."""

import json
import re
from dataclasses import replace

import pytest
from by_hand import made, policy, powers
from rich.console import Console

from dqlab.compare import Ranking
from dqlab.compare.comparison import Frechet
from dqlab.compare.page import _drawn


def labels(ranking: Ranking) -> list[str]:
    return [c.label for c in ranking.comparisons]


@pytest.fixture
def ranking() -> Ranking:
    return Ranking.of([made("low", 12.0), made("high", 24.0), made("middle", 18.0)])


def test_higher_sqnr_comes_first(ranking) -> None:
    assert ranking.ranked
    assert labels(ranking) == ["high", "middle", "low"]
    assert [r["place"] for r in ranking.rows()] == ["1", "2", "3"]
    assert ranking.behind(ranking.comparisons[0]) is None
    assert ranking.behind(ranking.comparisons[2]).value == pytest.approx(-12)
    assert ranking.finding().startswith("First of 3 is high: noise SQNR 24.0 dB")


def test_what_intervals_cannot_tell_apart_is_tied() -> None:
    """Half of the trajectories are better by 3 dB, half worse: which half is drawn decides."""
    best, other = powers(20.0, 0.5), powers(19.9, -0.5)
    found = Ranking.of([made("b", powers=other), made("a", powers=best)])
    assert labels(found) == ["a", "b"]
    assert found.tied(found.comparisons[1])
    assert found.rows()[1]["place"] == "2 (tied)"
    assert "not to be told apart from it: b" in found.finding()


def test_a_small_lead_on_every_trajectory_is_no_tie() -> None:
    """Intervals of the two overlap widely; the interval of their difference does not."""
    found = Ranking.of([made("b", powers=powers(19.9, 0.5)), made("a", powers=powers(20.0, 0.5))])
    assert not found.tied(found.comparisons[1])
    gap = found.behind(found.comparisons[1])
    assert (gap.low, gap.value, gap.high) == pytest.approx((-0.1, -0.1, -0.1))


@pytest.mark.parametrize("names", [("common", "paper"), ("common", "common")])
def test_different_policies_are_not_ranked(names) -> None:
    """Not even if the policies have the same name: their rules count."""
    low, high = made("low", 12.0), made("high", 24.0)
    first, second = (
        replace(c, info=c.info | {"policy": policy(name, bits)})
        for c, name, bits in zip((low, high), names, (8, 4), strict=True)
    )
    found = Ranking.of([first, second])
    assert not found.ranked
    assert labels(found) == ["low", "high"]  # as given
    assert {r["place"] for r in found.rows()} == {"not ranked"}
    assert found.behind(found.comparisons[1]) is None
    assert not found.tied(found.comparisons[1])
    for told in (str(found), found._repr_html_(), found.to_dict()["notices"][0]):
        assert "policies differ" in told
        assert f"high: {names[1]}" in told
    assert found.to_dict()["ranked_by"] is None
    assert found.to_frame()["place"].isna().all()


def test_without_sqnr_pictures_decide() -> None:
    found = Ranking.of([made("a", 20.0, error=0.2), made("b", None, error=0.1)])
    assert found.by_images
    assert labels(found) == ["b", "a"]
    gap = found.behind(found.comparisons[1])
    assert gap.value == pytest.approx(4, rel=1e-4)
    assert (gap.low, gap.high) == pytest.approx((4, 4), rel=1e-4)
    assert "b has no SQNR: it remembers its run." in str(found)
    assert "Ranked by the final pictures" in found._repr_html_()
    assert found.to_dict()["ranked_by"] == "image_mse_median"


def test_what_else_differs_is_said(ranking) -> None:
    assert ranking.notices == ()
    other = made("other", 3.0)
    changed = replace(other, info=other.info | {"weights": 2, "profile": "paper"})
    found = Ranking.of([made("a"), changed])
    assert found.ranked
    assert found.notices == ("They also differ in bits, profiles.",)


def test_equal_labels_are_numbered() -> None:
    assert labels(Ranking.of([made("a", 20.0), made("a", 10.0)])) == ["a #1", "a #2"]


def test_frame_and_json_hold_the_same_numbers(ranking) -> None:
    frame = ranking.to_frame().set_index("label")
    numbers = json.loads(json.dumps(ranking.to_dict(), allow_nan=False))
    assert [p["label"] for p in numbers["pipelines"]] == list(frame.index)
    for p in numbers["pipelines"]:
        assert p["sqnr_db_mean"] == pytest.approx(frame["sqnr_db"][p["label"]])
        assert p["image_mse_median"] == pytest.approx(frame["image_mse"][p["label"]])


def test_gains_over_a_baseline_are_a_column() -> None:
    plain = made("plain", 15.0)
    found = Ranking.of([made("a", 20.0, baseline=plain), made("b", 18.0, baseline=plain)])
    cells = [r["over plain rounding"] for r in found.rows()]
    assert [c.split()[0] for c in cells] == ["5.0", "3.0"]
    assert "over plain rounding" not in Ranking.of([made("a"), made("b")]).rows()[0]


def test_prompts_and_frechet_are_columns_where_measured() -> None:
    shares = {"full": {"all": 0.9}, "quantized": {"all": 0.75}}
    distance = Frechet(3.0, 0.2, 2.0, 0.1, 1.0, 512)
    found = Ranking.of([made(label, fidelity=shares, frechet=distance) for label in "ab"])
    row = found.rows()[0]
    assert row["prompt shown: all"].startswith("75 % [")
    assert row["Frechet distance"] == "3 [2.6, 3.4]"
    for told in (str(found), found._repr_html_()):
        assert "not FID" in told
        assert "computed from codes and scales" in told
        assert "MACs x bits of one operand" in told


def test_page_draws_a_few_and_lists_all() -> None:
    """Plain rounding in its own look, wherever it stands, and the first three others."""
    given = [made(f"method {i}", 20.0 - i) for i in range(5)]
    others = [replace(c, info=c.info | {"recipe": {"methods": ["tdq"]}}) for c in given]
    found = Ranking.of([*others, made("plain", 1.0)])
    page = found._repr_html_()
    drawn, _ = re.findall("<img[^>]*>", page)
    assert all(f"method {i}" in page for i in range(5))
    assert all(label in drawn for label in ("plain", "method 0", "method 1", "method 2"))
    assert "method 3" not in drawn
    assert "Drawn: 4 of 6." in page
    looks = _drawn(found.comparisons)
    assert looks["plain"] == "rtn"
    assert looks["method 0"] == "method"


def test_terminal_table_has_every_cell(ranking) -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(ranking)
    shown = console.export_text()
    for row in ranking.rows():
        assert all(cell in shown for cell in row.values())
