"""Every branch of every sentence."""

import pandas as pd
import pytest
import torch

from dqlab.phenomena import verdicts
from dqlab.phenomena.quality import frechet_deviation, names, opposite_pairs
from dqlab.phenomena.verdicts import Verdict


def settled(step: int) -> Verdict:
    frame = pd.DataFrame({"seed": [0, 1], "attribute": "garment", "step": step})
    return verdicts.settled(frame, total=20)


def rounding(ratio: float, clipped: float) -> Verdict:
    return verdicts.rounding({"ratio": ratio, "clipped": clipped})


def clipping(loss: float) -> Verdict:
    return verdicts.clipping({"best": 2.5, "widest": 4.5, "loss_db": loss}, 4)


def granularity(gain: float) -> Verdict:
    return verdicts.granularity(pd.DataFrame({"gain": [gain] * 3}))


def curve(values: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"step": range(len(values)), "db": values})


def worst(values: list[float]) -> Verdict:
    return verdicts.worst_step(curve(values), "W4A4")


def single(worst_step: int, together: float) -> Verdict:
    errors = [0.1] * 10
    errors[worst_step] = 1.1
    frame = pd.DataFrame({"step": range(10), "seed": 0, "error": errors})
    return verdicts.single_steps(frame, curve([20.0] * 9 + [5.0]), together)


def answered(w4a8: float, w8a4: float) -> Verdict:
    """Pictures off by so much, give or take 10 %; W4A8 has the better answers."""
    rows = [pd.Series({"mse": m, "mse_low": 0.9 * m, "mse_high": 1.1 * m}) for m in (w4a8, w8a4)]
    return verdicts.answers_or_pictures([23.0, 15.0], rows)


def drifting(share: float) -> Verdict:
    moving = int(100 * share)
    return verdicts.drifting(pd.Series([2.0] * moving + [1.0] * (100 - moving)), 1.5)


def ranks(count: int) -> Verdict:
    row = {"closer": "W4A8", "lower": "W8A4", "mse_ratio": 2.0, "frechet_ratio": 1.5}
    return verdicts.opposite_ranks(pd.DataFrame([row] * count), 4)


CASES = [
    (verdicts.picture_or_net(0.1, 0.001), "holds", "error is 100×"),
    (verdicts.picture_or_net(0.001, 0.001), "weaker", "1×"),
    (verdicts.picture_or_net(0.001, 0.004), "opposite", "only 0.25×"),
    (settled(3), "early", "from step 3"),
    (settled(15), "late", "second half"),
    (rounding(1.02, 0), "holds", "1.02 times"),
    (rounding(1.5, 0.02), "clips", "2.0 % of the values"),
    (rounding(0.4, 0), "coarse", "coarse"),
    (clipping(4.0), "clip", "loses 4.0 dB"),
    (clipping(0.3), "keep", "little to win"),
    (granularity(3.0), "holds", "gains 3.0 dB"),
    (granularity(0.2), "weaker", "little"),
    (granularity(-2.0), "opposite", "it loses"),
    (verdicts.harder_half(25, 15), "activations", "by 10.0 dB"),
    (verdicts.harder_half(15, 25), "weights", "by 10.0 dB"),
    (verdicts.harder_half(20.2, 20), "equal", "within 1 dB"),
    (answered(0.06, 0.03), "contrary", "does not rank pictures"),
    (answered(0.03, 0.06), "same", "the closer pictures"),
    (answered(0.05, 0.049), "unclear", "too close to rank"),
    (worst([20, 18, 16, 5.0]), "last", "finished picture"),
    (worst([5.0, 18, 16, 20]), "first", "worst near pure noise"),
    (worst([20, 5.0, 16, 20]), "middle", "at step 1"),
    (single(0, 2.0), "elsewhere", "step 0 alone"),
    (single(9, 2.0), "same", "close by"),
    (single(0, 1.0), "elsewhere", "2.00 times the error of all steps together: each step moves"),
    (single(0, 2.0), "elsewhere", "nearly add up"),
    (single(0, 20.0), "elsewhere", "more harm"),
    (verdicts.inheritance(None, 19), "never", "not overtaken"),
    (verdicts.inheritance(2, 19), "early", "From step 2"),
    (verdicts.inheritance(15, 19), "late", "Only from step 15"),
    (drifting(0.4), "many", "40 % of the sites"),
    (drifting(0.1), "some", "10 % of the sites"),
    (drifting(0.0), "few", "hardly drift"),
    (verdicts.end_layers(12, 16), "holds", "most damage"),
    (verdicts.end_layers(16, 16), "weaker", "as much as"),
    (verdicts.end_layers(20, 16), "opposite", "the many"),
    (ranks(0), "agree", "none of 6 pairs"),
    (ranks(2), "disagree", "In 2 of 6 pairs"),
]


@pytest.mark.parametrize(("verdict", "key", "words"), CASES, ids=lambda v: str(v)[:30])
def test_each_branch(verdict: Verdict, key: str, words: str) -> None:
    assert verdict.key == key
    assert words in verdict.words
    assert str(verdict) == repr(verdict) == verdict.words


def test_a_belief_is_refuted_or_not() -> None:
    verdict = verdicts.harder_half(25, 15)
    against = verdicts.belief("Weights <matter>.", verdict, refuted_by=["activations"])
    assert against.key == "refuted"
    assert "Not here. W4A8 keeps" in str(against)
    assert "&lt;matter&gt;" in against._repr_html_()
    spared = verdicts.belief("Weights matter.", verdict, refuted_by=["equal"])
    assert spared.key == "not refuted"
    assert "does not refute" in str(spared)


def judged(mse: list[float], frechet: list[float], half: float) -> pd.DataFrame:
    frame = pd.DataFrame({"weights": [8, 4, 3], "activations": [8, 4, 3]})
    for name, values in (("mse", mse), ("frechet", frechet)):
        frame[name] = values
        frame[f"{name}_low"], frame[f"{name}_high"] = frame[name] - half, frame[name] + half
    return frame


def test_only_clear_and_contrary_ranks_count() -> None:
    assert opposite_pairs(judged([1, 2, 3], [10, 20, 30], half=0.1)).empty
    assert opposite_pairs(judged([1, 2, 3], [10, 30, 20], half=0.6)).empty
    swapped = opposite_pairs(judged([1, 2, 4], [10, 50, 25], half=0.1))
    assert swapped[["closer", "lower"]].to_numpy().tolist() == [["W4A4", "W3A3"]]
    assert swapped[["mse_ratio", "frechet_ratio"]].to_numpy().tolist() == [[2.0, 2.0]]
    assert names(judged([1, 2, 3], [1, 2, 3], 0)) == ["W8A8", "W4A4", "W3A3"]


def test_more_pictures_make_the_distance_surer() -> None:
    generator = torch.Generator().manual_seed(0)
    real, few, many = (torch.randn(n, 64, generator=generator) for n in (300, 80, 640))
    assert frechet_deviation(real, many, 8) < frechet_deviation(real, few, 8)
