"""How the range of each activation moves over the sampling steps.

The drift of a site is R = max over steps / min over steps of its largest absolute value.
"""

from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor

from dqlab.layers import Policy, Rule, quantizers
from dqlab.methods import describe, quantize
from dqlab.models.families import family_of
from dqlab.ranges import MinMax
from dqlab.trajectory import States, inactive, replay, tapped

UNTOUCHED = Policy("untouched", (Rule("*", None, "only watched"),))
DRIFTING = 1.5


def watchable(pipe, states: States):
    """A copy of `pipe` with every site named and nothing quantized, to watch tensors in."""
    return quantize(pipe, "rtn", 8, 8, policy=UNTOUCHED, calibration=states[:1])


def activation_sites(pipe) -> list[str]:
    """Activation sites of a wrapped pipeline in execution order, attention products included."""
    found = describe(pipe)
    inputs = [f"{layer}.input" for layer in found["layers"]]
    return inputs + [f"{a}.{operand}" for a in found["attentions"] for operand in "qkvp"]


def layer_table(pipe) -> pd.DataFrame:
    """Columns layer, branch ("down", "middle", "up") of the wrapped layers, in execution order."""
    layers = describe(pipe)["layers"]
    return pd.DataFrame({"layer": layers, "branch": [branch_of(name) for name in layers]})


def branch_of(layer: str) -> str:
    """Where in a U-Net's valley a layer stands; the time embedding counts with the way down."""
    return {"mid_block": "middle", "up_blocks": "up", "conv_out": "up"}.get(
        layer.split(".")[0], "down"
    )


_SHORT = {
    "down_blocks.": "down ", "up_blocks.": "up ", "mid_block": "middle", ".resnets.": " res ",
    ".attentions.": " attention ", "downsamplers.0.": "down ", "upsamplers.0.": "up ",
    ".to_out.0": " out", ".to_": " ", "time_embedding.linear_": "time ", "time_emb_proj": "time",
    "conv_shortcut": "shortcut", "conv_in": "conv in", "conv_out": "conv out", ".": " ",
}  # fmt: skip


def short_name(layer: str) -> str:
    """A layer's path for people, such as "up 0 res 1 conv1"."""
    for long, less in _SHORT.items():
        layer = layer.replace(long, less)
    return layer


def shorten(frame: pd.DataFrame) -> pd.DataFrame:
    """The same frame with its column layer named for people."""
    return frame.assign(layer=frame["layer"].map(short_name))


def range_table(pipe, states: States, sites: Iterable[str]) -> pd.DataFrame:
    """Lowest and highest value at each site and step, with activations left unquantized.

    Returns:
        Columns site, step, timestep, low, high.

    """
    model, sites = family_of(pipe).denoiser(pipe), list(sites)
    off = [q for q in quantizers(model).values() if not q.site.endswith(".weight")]
    rows = []
    for step in states.step.unique().tolist():
        part = states[states.step == step]
        seen = {site: MinMax(name=site) for site in sites}
        with inactive(off), tapped(model, sites, lambda site, x, s=seen: s[site].update(x)):
            replay(model, part)
        rows += [(s, step, int(part.t[0]), float(o.low), float(o.high)) for s, o in seen.items()]
    return pd.DataFrame(rows, columns=["site", "step", "timestep", "low", "high"])


def static_ranges(table: pd.DataFrame) -> pd.DataFrame:
    """One range per site for all steps: columns low, high, indexed by site."""
    return table.groupby("site", sort=False).agg(low=("low", "min"), high=("high", "max"))


def drift(table: pd.DataFrame) -> pd.Series:
    """R of each site in `range_table`'s frame, largest first."""
    reach = table[["high", "low"]].abs().max(axis=1)
    over_steps = reach.groupby(table["site"], sort=False)
    return (over_steps.max() / over_steps.min()).sort_values(ascending=False)


def reach(table: pd.DataFrame, branches: pd.DataFrame) -> pd.DataFrame:
    """Layer inputs' largest absolute value relative to its maximum over steps, for a map.

    Returns:
        Columns layer, branch, step, timestep, percent, layers in execution order.

    """
    found = branches.assign(site=branches["layer"] + ".input").merge(table, on="site")
    largest = found[["high", "low"]].abs().max(axis=1)
    share = largest / largest.groupby(found["site"], sort=False).transform("max")
    return found.assign(percent=100 * share)[["layer", "branch", "step", "timestep", "percent"]]


def values_at(pipe, states: States, site: str) -> Tensor:
    """Everything that passes one site of a wrapped pipeline while `states` are replayed, flat."""
    model, seen = family_of(pipe).denoiser(pipe), []
    with tapped(model, [site], lambda _, x: seen.append(x.detach().flatten())):
        replay(model, states)
    return torch.cat(seen)
