import json

import pytest

from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.formats import Affine, parse
from dqlab.layers import Policy, Rule, common_policy
from dqlab.layers.policy import policy_from_dict

COMMON = common_policy("conv_in", "conv_out")


@pytest.mark.parametrize(
    ("site", "fmt"),
    [
        ("conv_in.weight", Affine(8)),
        ("conv_in.input", Affine(8)),
        ("conv_out.weight", Affine(8)),
        ("conv_out.input", Affine(8)),
        ("down.0.conv1.weight", Affine(4)),
        ("down.0.conv1.weight[1]", Affine(4)),
        ("down.0.conv1.input", Affine(6)),
        ("down.0.conv1.input[0]", Affine(6)),
        ("mid.attn.q", Affine(6)),
        ("mid.attn.p", Affine(8, "always_zero")),
        ("down.0.conv_in.weight", Affine(4)),
    ],
)
def test_common_policy(site, fmt) -> None:
    assert COMMON.format(site, 4, 6) == fmt


def test_softmax_bits_and_named_formats() -> None:
    policy = common_policy("conv_in", "conv_out", softmax=4)
    assert policy.format("a.p", 4, 6) == Affine(4, "always_zero")
    assert policy.format("a.weight", "fp4", "fp8") == parse("fp4")
    assert policy.format("a.input", parse("fp4"), parse("fp8")) == parse("fp8")
    assert policy.format("conv_in.weight", "fp4", "fp8") == Affine(8)


@pytest.mark.parametrize("site", ["conv_in.input", "a.input", "a.q", "a.p"])
def test_no_activation_bits_means_full_precision_everywhere(site) -> None:
    assert COMMON.format(site, 4, None) is None


@pytest.mark.parametrize("site", ["conv_in.weight", "a.weight", "a.weight[0]"])
def test_no_weight_bits_means_full_precision_everywhere(site) -> None:
    assert COMMON.format(site, None, 8) is None


def test_first_match_decides() -> None:
    policy = Policy("mine", (Rule("up.*", None), Rule("up.0.*", 2), Rule("*", "activations")))
    assert policy.format("up.0.input", 4, 6) is None
    assert policy.format("down.input", 4, 6) == Affine(6)


def test_site_without_a_rule_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"'mine'.*'down\.weight'; add one"):
        Policy("mine", (Rule("up.*", 4),)).format("down.weight", 4, 4)


def test_printed_policy_names_every_rule() -> None:
    text = str(COMMON)
    assert "policy 'common': first match decides" in text
    assert all(rule.pattern in text for rule in COMMON.rules)
    assert len(text.splitlines()) == 1 + len(COMMON.rules)


@pytest.mark.parametrize(
    "policy",
    [COMMON, Policy("mine", (Rule("*.p", parse("log2-4"), "why"), Rule("*", None)))],
)
def test_round_trip_through_json(policy) -> None:
    again = policy_from_dict(json.loads(json.dumps(policy.to_dict())))
    for site in ("conv_in.weight", "a.weight", "a.q", "a.p"):
        assert again.format(site, 4, 6) == policy.format(site, 4, 6)
    assert again.to_dict() == policy.to_dict()


@pytest.mark.parametrize(
    ("bits", "error"), [(0, InvalidInputError), (17, InvalidInputError), ("fp3", UnknownNameError)]
)
def test_impossible_bits_are_refused_with_the_site(bits, error) -> None:
    with pytest.raises(error, match=r"At \*:"):
        COMMON.check(4, bits)
    with pytest.raises(error, match=r"At \*\.p:"):
        common_policy("a", "b", softmax=bits).check(4, 4)
    with pytest.raises(error, match=r"At a\.input"):
        COMMON.format("a.input", 4, bits)
