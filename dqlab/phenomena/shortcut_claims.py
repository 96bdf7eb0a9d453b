"""What Q-Diffusion claims about shortcuts, held against this network's numbers."""

from collections.abc import Iterable

import pandas as pd

from dqlab.metrics import sqnr_per_step
from dqlab.phenomena.drift import short_name
from dqlab.phenomena.ledger import Claim, gain_db
from dqlab.phenomena.shortcuts import Shortcut, output_db
from dqlab.phenomena.verdicts import Verdict

LAST = "+ reconstruction"
"""The ladder's rung that learns."""


def of_sweep(powers: pd.DataFrame, factor: int, split: bool) -> pd.DataFrame:
    """The sweep's error powers at one factor."""
    return powers[(powers["factor"] == factor) & (powers["split"] == split)]


def of_ladder(powers: pd.DataFrame, weights: int, activations: int, name: str) -> pd.DataFrame:
    """The ladder's error powers of one rung."""
    chosen = (powers["weights"] == weights) & (powers["activations"] == activations)
    return powers[chosen & (powers["rung"] == name)]


def absorbed(found: Iterable[Shortcut], factor: float) -> Verdict:
    """What an injection costs each shortcut's output at W8A8, with one range and with two."""
    pairs = [(s, s.scaled(factor)) for s in found]
    lost, split = (
        [output_db(before, 8, 8, two) - output_db(after, 8, 8, two) for before, after in pairs]
        for two in (False, True)
    )
    moved = max(map(abs, split))
    told = (
        f"Skip × {factor:g} costs the {len(pairs)} shortcuts between {min(lost):.0f} and "
        f"{max(lost):.0f} dB of output with one range, and moves them by at most {moved:.2f} dB "
        "with two"
    )
    if moved <= 0.1 and min(lost) >= 25:
        return Verdict("absorbed", f"{told}: every layer is ruined, and splitting heals it.")
    if moved <= 0.1:
        return Verdict("partly", f"{told}: not every layer is ruined.")
    return Verdict("leaks", f"{told}: the scales do not take all of it up.")


def better_steps(powers: pd.DataFrame, factor: int) -> Verdict:
    """At how many steps the split network is no worse, from the sweep's error powers."""
    wide = [sqnr_per_step(of_sweep(powers, factor, split))["sqnr_db"] for split in (False, True)]
    ahead = wide[1].to_numpy() >= wide[0].to_numpy()
    told = f"At c = {factor} splitting is no worse at {ahead.sum()} of {len(ahead)} steps"
    if ahead.mean() >= 0.9:
        return Verdict("most", f"{told}.")
    if ahead.mean() >= 0.5:
        return Verdict("many", f"{told}: not at all of them.")
    return Verdict("few", f"{told}: at most of them one range serves better.")


def beyond(drift: pd.DataFrame) -> pd.DataFrame:
    """How far shortcuts reach, beside the two 3x3 convolutions of the same block.

    Args:
        drift: columns site, step, absmax, as `calibration_strategy.drift_frame` has them.

    Returns:
        Columns layer, reach, neighbour (the wider of the two), ratio; blocks on the way up.

    """
    reach, end = drift.groupby("site", sort=False)["absmax"].max(), "conv_shortcut.input"
    rows = []
    for site in reach.index[
        reach.index.str.startswith("up_blocks") & reach.index.str.endswith(end)
    ]:
        block = site.removesuffix(end)
        near = max(reach[f"{block}{conv}.input"] for conv in ("conv1", "conv2"))
        rows.append((short_name(block.rstrip(".")), reach[site], near, reach[site] / near))
    return pd.DataFrame(rows, columns=["layer", "reach", "neighbour", "ratio"])


def towers(drift: pd.DataFrame) -> dict[str, Claim]:
    """Whether a shortcut's input dwarfs its neighbours', from the same frame."""
    top = float(beyond(drift)["ratio"].max())
    says = "a shortcut reads values far beyond its neighbours' (widest block)"
    return {"neighbours": Claim(says, "up to about 200 ×", top, top, top, "×", 10.0, 2.0)}


def claims(
    ratios: pd.DataFrame,
    gains: pd.DataFrame,
    ladder: pd.DataFrame,
    ledger: pd.DataFrame | None = None,
) -> dict[str, Claim]:
    """Q-Diffusion's claims on the natural network, with the margins they are judged by.

    Args:
        ratios: `ratio_table`.
        gains: `split_gains`; for the mean over layers W4A8 counts.
        ladder: error powers by rung; a claim about a rung that is not there is left out.
        ledger: rows of the ladder's judged rungs; None leaves out the claim about pictures.

    """
    wide = float(ratios["rho_x"].where(ratios["rho_x"] >= 1, 1 / ratios["rho_x"]).max())
    layers = gains.query("weights == 4 and activations == 8")["gain"]
    mean, half = float(layers.mean()), float(1.96 * layers.sem())
    found = {
        "populations": Claim(
            "one part of a shortcut's input reaches far beyond the other",
            "a step in a figure", wide, wide, wide, "×", 10.0, 2.0,
        ),
        "layers": Claim(
            "split ranges help shortcut layers (output, W4A8, mean over layers)",
            "", mean, mean - half, mean + half, "dB", 0.5,
        ),
        "no layer": Claim(
            "layers that lose at most 0.05 dB by the split (output, all bits)",
            "", *[100 * float((gains["gain"] >= -0.05).mean())] * 3, "%", 100.0, 50.0,
        ),
    }  # fmt: skip
    for name, (says, quoted, before, after, full) in _RUNG_CLAIMS.items():
        pair = [of_ladder(ladder, 4, 8, rung) for rung in (before, after)]
        if not any(part.empty for part in pair):
            found[name] = Claim(says, quoted, *gain_db(*pair), "dB", full)
    return found | ({} if ledger is None else _closer(ledger))


def learned_claims(powers: pd.DataFrame, run: pd.DataFrame) -> dict[str, Claim]:
    """What the split is worth once rounding is learned, and learning along a run, both at W4A8.

    Args:
        powers: error powers of `bimodal_shortcuts.LEARNED`, named in column setting.
        run: `chain_errors` of the same settings' own runs; over the late half of the steps.

    """
    one, two = (powers[powers["setting"] == f"learned, {kind}"] for kind in ("one range", "split"))
    wide = run.pivot(index="step", columns="series", values="error")
    late = wide[wide.index > wide.index.max() / 2]
    ratios = late["nearest, split"] / late["learned, split"]
    return {
        "split, learned": Claim(
            "split ranges help the network once rounding is learned (eps, W4A8)", "",
            *gain_db(one, two), "dB", 1.0,
        ),
        "run": Claim(
            "learned rounding keeps late states of a run closer (median; ends: steps; W4A8)", "",
            float(ratios.median()), float(ratios.min()), float(ratios.max()), "×", 2.0, 1.0,
        ),
    }  # fmt: skip


def _closer(ledger: pd.DataFrame) -> dict[str, Claim]:
    """Median paired errors before and after reconstruction; the interval joins both widest."""
    rows = ledger.query("weights == 4 and activations == 8").set_index("method")
    if LAST not in rows.index:
        return {}
    before, after = rows.loc["+ split"], rows.loc[LAST]
    ratio, low, high = (
        float(before[x] / after[y])
        for x, y in (("mse", "mse"), ("mse_low", "mse_high"), ("mse_high", "mse_low"))
    )
    says = "block reconstruction brings final pictures closer (paired error, W4A8)"
    return {"pictures": Claim(says, "", ratio, low, high, "×", 2.0, 1.0)}


_RUNG_CLAIMS = {
    "split": (
        "split ranges help the network (eps, W4A8, after range search)",
        "", "+ range search", "+ split", 1.0,
    ),
    "reconstruction": (
        "block reconstruction helps the network (eps, W4A8, after the split)",
        "", "+ split", LAST, 1.0,
    ),
    "method": (
        "the whole method beats plain rounding (eps, W4A8)",
        "FID rises by at most 2.34, not by over 100", "rtn", LAST, 3.0,
    ),
}  # fmt: skip
"""Says, quoted, the rung before, the rung after, and the gain from which it counts."""


def grows(chain: pd.DataFrame) -> Verdict:
    """The error along the chain, from `steps.chain_errors` of runs ordered from many bits to few.

    Holds if in the second half of the run fewer bits are further off at every step.
    """
    wide = chain.pivot(index="step", columns="series", values="error")[chain["series"].unique()]
    late = wide[wide.index > wide.index.max() / 2]
    ordered = (late.diff(axis=1).iloc[:, 1:] > 0).all(axis=1)
    told = ", ".join(
        f"{name} {wide[name].iloc[0]:.1e} to {wide[name].iloc[-1]:.1e}" for name in wide
    )
    told = f"Squared error of the state, first step to last: {told}"
    if ordered.all():
        return Verdict("ordered", f"{told}. Late in the run fewer bits are always further off.")
    return Verdict(
        "crossing", f"{told}. Fewer bits are further off at {ordered.sum()} of {len(late)} late "
        "steps.",
    )  # fmt: skip
