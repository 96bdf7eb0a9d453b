from itertools import combinations

import pytest
from tiny_diffusion import images, new_pipeline, sampler

import dqlab
from dqlab import recipe
from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.methods.method import MOMENTS
from dqlab.methods.registry import all_methods, describe
from dqlab.methods.unet_dynamic import tdq

ACTS = {slug: cls.moments() for slug, cls in all_methods().items()}
PAIRS = list(combinations(ACTS, 2))

# What is known to combine, and where those that do not meet.
TABLE = {
    ("rtn", "ptqd"): (),
    ("rtn", "tdq"): (),
    ("ptqd", "tdq"): (),
}


def clashes(first: str, second: str) -> tuple[str, ...]:
    return tuple(m for m in MOMENTS if m in ACTS[first] and m in ACTS[second])


@pytest.mark.parametrize("pair", PAIRS, ids="|".join)
def test_every_pair_composes_or_says_why_not(pair) -> None:
    first, second = pair
    met = clashes(first, second)
    if not met:
        made = recipe(first) | recipe(second)
        assert set(made.owners) == {*ACTS[first], *ACTS[second]}
        assert made.slug == f"{first} | {second}"
        return
    with pytest.raises(InvalidInputError) as caught:
        recipe(first) | recipe(second)
    sentence = str(caught.value)
    assert all(word in sentence for word in (first, second, met[0], ".without("))
    assert set((recipe(first).without(*met) | recipe(second)).owners) >= set(met)


@pytest.mark.parametrize("pair", TABLE, ids="|".join)
def test_the_known_pairs(pair) -> None:
    assert clashes(*pair) == TABLE[pair] == clashes(*reversed(pair))


def test_moments_are_what_the_papers_are_about() -> None:
    assert ACTS["rtn"] == ()
    assert ACTS["ptqd"] == ("correct",)
    assert ACTS["tdq"] == ("place", "fit")
    assert {row["slug"]: tuple(row["moments"]) for row in describe()} == ACTS


@pytest.mark.parametrize("slug", ["ptqd", "tdq"])
def test_a_method_clashes_with_itself(slug) -> None:
    with pytest.raises(InvalidInputError, match=f"{slug} and {slug} both act at the moment"):
        recipe(slug) | recipe(slug)


def test_composed_is_what_both_do(monkeypatch) -> None:
    """TDQ's network with PTQD behind it: its network alone is that of TDQ."""
    monkeypatch.setattr(tdq, "VALUES", 128)
    quick, pipe = recipe("tdq", warm=3, updates=3), new_pipeline()
    both = dqlab.quantize(pipe, quick | recipe("ptqd", samples=2), 4, 4, sampler=sampler())
    alone = dqlab.quantize(pipe, quick, 4, 4, sampler=sampler())
    described = [dqlab.describe(q) for q in (both, alone)]
    assert described[0]["recipe"]["methods"] == ["tdq", "ptqd"]
    assert described[0]["recipe"]["moments"] == {"place": "tdq", "fit": "tdq", "correct": "ptqd"}
    state = both.unet.state_dict()
    assert all(bool((v == state[k]).all()) for k, v in alone.unet.state_dict().items())
    assert type(both).__name__ == "CorrectedDDIMPipeline"
    assert not (images(both) == images(alone)).all()


def test_rtn_with_a_correction_is_the_correction_alone() -> None:
    pipe, made = new_pipeline(), []
    for chosen in (recipe("rtn") | recipe("ptqd", samples=2), recipe("ptqd", samples=2)):
        made.append(images(dqlab.quantize(pipe, chosen, 4, 4, sampler=sampler())))
    assert (made[0] == made[1]).all()


def test_unknown_moments_and_methods_name_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="calibrate, reshape, place, fit, correct"):
        recipe("ptqd").only("repair")
    with pytest.raises(UnknownNameError, match="rtn"):
        recipe("rtn") | "no-such-method"
