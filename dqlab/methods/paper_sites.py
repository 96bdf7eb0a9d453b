"""Which sites papers of categories 1.1, 1.3 and 1.4 quantize, for policy="paper"."""

from dqlab.layers import Policy, Rule
from dqlab.models.families import Family

ATTENTION = Rule("*.[qkvp]", None, "products of attention")
REST = (Rule("*.weight*", "weights"), Rule("*", "activations", "inputs of layers"))


def _edges(family: Family, bits: int | None) -> tuple[Rule, ...]:
    ends = (layer for layer in (family.first, family.last) if layer)
    return tuple(Rule(f"{layer}.*", bits, "first and last layer") for layer in ends)


def ptq4dm(family: Family) -> Policy:
    """All convolutions and linear layers; the products of attention in full precision."""
    return Policy("ptq4dm", (*_edges(family, 8), ATTENTION, *REST))


def tdq(family: Family) -> Policy:
    """The released code's: the ends, and layers that see the time alone, in full precision."""
    rules = (
        *_edges(family, None),
        Rule("time_embedding.*", None, "sees the time alone"),
        Rule("*.time_emb_proj.*", None, "sees the time alone"),
        ATTENTION,
    )
    return Policy("tdq", (*rules, *REST))


def tfmq_dm(family: Family) -> Policy:
    """The released code's: more in full precision than the paper says, shortcuts among it."""
    rules = (
        *_edges(family, None),
        Rule("time_embedding.linear_1.*", None, "first layer of the time path"),
        Rule("time_embedding.linear_2.input", None, "its activation alone"),
        Rule("down_blocks.0.resnets.0.conv1.input", None, "first block, its activation alone"),
        Rule("*.conv_shortcut.*", None, "shortcuts"),
        Rule("*.downsamplers.*", None, "downsampling"),
        ATTENTION,
    )
    return Policy("tfmq-dm", (*rules, *REST))


def qvd(family: Family) -> Policy:
    """The public port's, as far as it is known: not whether products of attention take part."""
    rules = (
        Rule(f"{family.last}.input", None, "input of the last layer"),
        *_edges(family, 8),
        Rule("*.p", 8, "softmax output; not known of the port, so as in the common policy"),
    )
    return Policy("qvd", (*rules, *REST))
