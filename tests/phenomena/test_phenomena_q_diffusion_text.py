"""Q-Diffusion's text-to-image setting: what is measured, on a tiny Stable Diffusion."""

import pandas as pd
import pytest
from tiny_pipelines import stable_diffusion

from dqlab.layers import quantizers
from dqlab.models.families import Sampler
from dqlab.phenomena import q_diffusion_text as measured
from dqlab.phenomena import stored
from dqlab.show import q_diffusion_text as shown

PLAN = measured.Plan(
    trajectories=2, steps=2, held_out=2, operands=(("q", 8), ("p", 4), ("p", 16)),
    weights=(4,), few=(1,), sampler=Sampler(4),
)  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    made = stable_diffusion()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def states(pipe):
    return measured.recorded(pipe, PLAN)


@pytest.fixture(scope="module")
def frames(pipe):
    return measured.measure(pipe, PLAN)[0]


def test_sets_hold_the_steps_they_are_named_after(states) -> None:
    found = measured.sources(states, PLAN)
    steps = {name: part.step.unique().tolist() for name, part in found.items()}
    assert steps == {
        measured.EVEN: [0, 2], "first steps": [0, 1], "middle steps": [1, 2],
        "last steps": [2, 3], "evenly spread, m = 1": [0],
        measured.ONE_BRANCH: [0, 2], measured.MOVING: [0, 2],
    }  # fmt: skip
    both, one = found[measured.EVEN], found[measured.ONE_BRANCH]
    assert len(both) == 2 * len(one) == 2 * 2 * 2
    assert both.branches[int(one.branch.unique())] == "cond"


def test_one_operand_alone_is_quantized(pipe, states) -> None:
    q = measured.operand_alone(pipe, "p", 4, states, PLAN)
    bits = {site: one.format for site, one in quantizers(q.unet).items() if one.format}
    assert bits and all(site.endswith(".p") for site in bits)
    assert {fmt.name for fmt in bits.values()} == {"uint4-zero"}


def test_everything_is_measured(frames) -> None:
    assert frames["operands"].groupby(["operand", "bits"]).ngroups == 3
    assert frames["policies"]["softmax"].unique().tolist() == [16, 8]
    assert frames["sources"]["source"].nunique() == 7
    assert frames["live"]["setting"].unique().tolist() == ["last steps", "softmax"]
    table = measured.operand_table(frames["operands"]).set_index(["operand", "bits"])["db"]
    assert table["p", 16] > table["p", 4]
    even = measured.source_table(frames["sources"]).set_index("source").loc[measured.EVEN]
    assert even["gain"] == 0 and even["worst"] <= even["db"]


def powers(noise: float, **setting) -> pd.DataFrame:
    rows = [(k, 900 - k, s, 1.0, noise * (1 + 0.01 * s)) for k in range(3) for s in range(4)]
    names = ["step", "t", "seed", "signal", "noise"]
    return pd.DataFrame(rows, columns=names).assign(**setting)


@pytest.mark.parametrize(("factor", "key"), [(2.0, "helps"), (1.0, "nothing"), (0.5, "nothing")])
def test_softmax_bits_help_where_the_interval_is_clear(factor: float, key: str) -> None:
    pair = [powers(0.01 * f, weights=8, softmax=bits) for f, bits in ((1, 16), (factor, 8))]
    assert measured.softmax_gain(pd.concat(pair), 8).key == key


def test_verdicts_follow_the_numbers() -> None:
    operands = pd.DataFrame(
        {"operand": [*"qkvp"], "bits": 4, "db": [37.0, 43.0, 36.0, 27.0]},
    )
    found = measured.costliest(operands, 4)
    assert found.key == "softmax" and "9.0 dB below the values" in str(found)
    cases = {"reproduces": (-1, -1, -1), "weaker": (0, 0, -1), "absent": (0, 1, 0)}
    for key, highs in cases.items():
        table = pd.DataFrame({"source": measured.WINDOWS, "gain": -2.0, "high": highs})
        assert measured.windows_verdict(table).key == key


@pytest.mark.parametrize(
    ("factor", "outcome"), [(2.0, "reproduces"), (0.5, "does not reproduce here")]
)
def test_windows_are_claims_of_their_own(factor: float, outcome: str) -> None:
    noise = {measured.EVEN: 0.01} | dict.fromkeys(measured.WINDOWS, 0.01 * factor)
    sources = pd.concat([powers(x, source=name) for name, x in noise.items()])
    found = measured.claims(sources)
    assert tuple(found) == measured.WINDOWS
    assert {claim.outcome for claim in found.values()} == {outcome}


def test_the_shipped_outcomes_follow_from_the_shipped_numbers() -> None:
    frames = stored.load(measured.NAME).frames
    kept, again = frames["outcomes"], measured.outcomes(frames)
    assert again["outcome"].tolist() == kept["outcome"].tolist()
    assert again["measured"].tolist() == pytest.approx(kept["measured"].tolist(), rel=1e-4)


def test_the_shipped_numbers_are_shown() -> None:
    results = stored.load(measured.NAME)
    page = shown.source_page(results.frames["sources"])
    assert measured.ONE_BRANCH in page.words
    assert "softmax output" in shown.operand_page(results.frames["operands"]).words
    assert "last steps" in shown.source_chart(results.frames["sources"]).sentence


def test_the_command_writes_results_with_their_origin(pipe, shipped, monkeypatch) -> None:
    pipe.save_pretrained(shipped / "models" / "latent-unet")
    monkeypatch.setattr(measured, "measure", lambda pipe, say: ({}, {}))
    measured.main()
    assert stored.load(measured.NAME).provenance["command"] == measured.COMMAND
