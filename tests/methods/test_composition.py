from itertools import combinations

import pytest
from tiny_diffusion import images, new_pipeline, sampler

import dqlab
from dqlab import recipe
from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.methods import step_networks
from dqlab.methods.method import MOMENTS
from dqlab.methods.registry import all_methods, describe

ACTS = {slug: cls().acts() for slug, cls in all_methods().items()}
PAIRS = list(combinations(ACTS, 2))

ADDS = {slug: cls.adds for slug, cls in all_methods().items()}
CORRECTIONS = ("ptqd", "d2-dpm", "tac-diffusion", "qncd")

PLAIN = ("rtn", "ptq4dm", "eda-dm", "q-diffusion", "tdq", "tfmq-dm", "qvd")
BASES = (*PLAIN, "softmax-bias-correction")

# Every correction on every method that quantizes, and every two corrections: where they meet.
TABLE = {
    **{(base, correction): () for base in BASES for correction in CORRECTIONS},
    **{(base, "qncd"): ("reshape",) for base in ("q-diffusion", "eda-dm", "qvd")},
    **{(base, "softmax-bias-correction"): () for base in PLAIN},
    ("tfmq-dm", "q-diffusion"): ("place",),
    ("tfmq-dm", "eda-dm"): ("place",),
    ("tfmq-dm", "tdq"): ("place",),
    ("qvd", "tfmq-dm"): ("place",),
    ("qvd", "tdq"): ("place",),
    ("qvd", "q-diffusion"): ("reshape", "place"),
    **{pair: ("correct",) for pair in combinations(CORRECTIONS, 2)},
    ("q-diffusion", "ptq4dm"): ("calibrate", "place"),
    ("ptq4dm", "tdq"): ("place",),
}


def clashes(first: str, second: str) -> tuple[str, ...]:
    """Moments at which both act, unless one of them adds to what the other does there."""
    met = (m for m in MOMENTS if m in ACTS[first] and m in ACTS[second])
    return tuple(m for m in met if (m in ADDS[first]) == (m in ADDS[second]))


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


@pytest.mark.parametrize("pair", [pair for pair in TABLE if TABLE[pair]], ids="|".join)
def test_a_clash_says_who_meets_where_and_what_to_drop(pair) -> None:
    first, second = pair
    moment = TABLE[pair][0]
    with pytest.raises(InvalidInputError) as caught:
        recipe(first) | recipe(second)
    assert str(caught.value) == (
        f"{first} and {second} both act at the moment {moment!r}. Drop it from one: "
        f"recipe({first!r}).without({moment!r}) | recipe({second!r})."
    )


def test_moments_are_what_the_papers_are_about() -> None:
    assert ACTS["rtn"] == ()
    assert ACTS["ptqd"] == ("correct",)
    assert ACTS["tdq"] == ("place", "fit")
    assert {row["slug"]: tuple(row["moments"]) for row in describe()} == ACTS


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("base", [slug for slug in ACTS if "correct" not in ACTS[slug]])
def test_every_correction_runs_on_every_other_method(base, correction) -> None:
    """At the moment it is named after; QNCD's rewrite is another matter."""
    made = recipe(base) | recipe(correction).only("correct")
    assert made.owners["correct"].slug == correction
    assert made.slug == f"{base} | {correction}"


@pytest.mark.parametrize("base", [slug for slug in ACTS if slug != "softmax-bias-correction"])
@pytest.mark.parametrize("first", [True, False])
def test_softmax_bias_correction_adds_to_every_other_method(base, first) -> None:
    pair = [recipe("softmax-bias-correction"), recipe(base)]
    made = pair[0] | pair[1] if first else pair[1] | pair[0]
    owner = made.owners["place"]
    assert owner.slug == "softmax-bias-correction"
    below = pair[1].owners.get("place")
    assert owner.beneath is below
    assert set(made.only("place").slug.split(" | ")) == {owner.slug, *([base] if below else [])}


def test_tfmq_dm_adds_to_any_reconstruction() -> None:
    """Two methods fit; TFMQ-DM works on what the other one does."""
    base = recipe("q-diffusion").without("place")
    for made in (base | recipe("tfmq-dm"), recipe("tfmq-dm") | base):
        assert made.owners["fit"].slug == "tfmq-dm"
        assert made.owners["fit"].beneath is base.owners["fit"]
        assert made.owners["reshape"].slug == made.owners["calibrate"].slug == "q-diffusion"


def test_ptqd_adds_to_what_was_placed_only_if_it_chooses_bits() -> None:
    base = recipe("q-diffusion")
    assert (base | recipe("ptqd")).owners["place"] is base.owners["place"]
    assert (base | recipe("ptqd", fewest=4)).owners["place"].beneath is base.owners["place"]


def test_an_added_to_moment_still_clashes_with_a_third_method() -> None:
    made = recipe("tdq") | recipe("softmax-bias-correction")
    with pytest.raises(InvalidInputError, match="tdq and q-diffusion both act at the moment 'pl"):
        made | recipe("q-diffusion").only("place")


@pytest.mark.parametrize(
    ("chosen", "kind"),
    [
        (recipe("d2-dpm", samples=2), "d2-dpm"),
        (recipe("tac-diffusion", samples=2), "tac-diffusion"),
        (recipe("qncd", interval=2, offset=0).only("correct"), "qncd"),
        (recipe("softmax-bias-correction") | recipe("ptqd", samples=2), "ptqd"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_corrections_at_work_on_a_network_that_another_method_made(chosen, kind) -> None:
    """Q-Diffusion's ranges; only what the correction itself edits differs."""
    base = recipe("q-diffusion", reconstruct=False, samples=4).without("calibrate")
    pipe = new_pipeline()
    both = dqlab.quantize(pipe, base | chosen, 4, 4, sampler=sampler())
    alone = dqlab.quantize(pipe, base, 4, 4, sampler=sampler())
    assert both.corrector.correction.kind == kind
    for other in ({"steps": 4}, {"eta": 1.0}):
        with pytest.raises(InvalidInputError, match="This correction was fitted for"):
            images(both, **other)
    state, plain = both.unet.state_dict(), alone.unet.state_dict()
    softmax = (
        "softmax-bias-correction" in both.unet.config["quantization_config"]["recipe"]["methods"]
    )
    same = [k for k in plain if not (softmax and "p_quantizer" in k)]
    assert all(bool((state[k] == plain[k]).all()) for k in same)


@pytest.mark.parametrize("slug", [slug for slug in ACTS if ACTS[slug]])
def test_a_method_clashes_with_itself(slug) -> None:
    with pytest.raises(InvalidInputError, match=f"{slug} and {slug} both act at the moment"):
        recipe(slug) | recipe(slug)


def test_composed_is_what_both_do(monkeypatch) -> None:
    """TDQ's network with PTQD behind it: its network alone is that of TDQ."""
    monkeypatch.setattr(step_networks, "VALUES", 128)
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
