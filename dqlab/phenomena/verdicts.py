"""What the measurements say, in words: one function per finding, one branch per possible outcome.

Each returns a `Verdict`: `key` names the branch ("holds", "weaker", "opposite", or the answer of
a prediction question), `words` is the sentence with the numbers in it. Margins are stated where a
branch is chosen, so that two close numbers never decide by chance.
"""

import html
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd

CLEAR_DB = 1.0
"""Two SQNRs closer than this are called equal."""


@dataclass(frozen=True)
class Verdict:
    """The branch taken and its sentence; printing it shows the sentence."""

    key: str
    words: str

    def __str__(self) -> str:
        return self.words

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.words)}</p>"


@dataclass(frozen=True)
class Belief(Verdict):
    """A widespread belief and what the verdict says to it."""

    quote: str

    def __str__(self) -> str:
        return f"Belief: “{self.quote}” {self.words}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        quote = f"<strong>“{html.escape(self.quote)}”</strong>"
        return f"<blockquote>{quote} {html.escape(self.words)}</blockquote>"


def belief(quote: str, verdict: Verdict, refuted_by: Collection[str]) -> Belief:
    """Hold a belief against a verdict: its keys in `refuted_by` speak against it."""
    if verdict.key in refuted_by:
        return Belief("refuted", f"Not here. {verdict.words}", quote)
    return Belief("not refuted", f"This model does not refute it. {verdict.words}", quote)


def picture_or_net(net_mse: float, picture_mse: float) -> Verdict:
    """Scene 1: a net at few bits against its picture at the same bits; mean squared errors."""
    ratio = net_mse / picture_mse
    if ratio > 2:
        return Verdict(
            "holds",
            f"The quantized net's squared error is {ratio:.3g}× that of a picture with the same "
            "bits: few bits in a net are not few colours in a picture.",
        )
    if ratio > 0.5:
        return Verdict(
            "weaker",
            f"The quantized net's squared error is {ratio:.3g}× that of a picture with the same "
            "bits, so look at how it differs, not at how far.",
        )
    return Verdict(
        "opposite",
        f"The quantized net's squared error is only {ratio:.3g}× that of a picture with the same "
        "bits.",
    )


def settled(steps: pd.DataFrame, total: int) -> Verdict:
    """Scene 4: when labels stop changing; columns seed, attribute, step."""
    medians = steps.groupby("attribute", sort=False)["step"].median()
    parts = ", ".join(f"{name} from step {step:g}" for name, step in medians.items())
    latest = float(medians.max())
    told = f"Half of the seeds keep their label: {parts}, of {total} steps."
    if latest <= total / 2:
        return Verdict("early", f"{told} The first half decides, the rest refines.")
    return Verdict("late", f"{told} Part of the decision falls in the second half.")


def rounding(facts: dict[str, float]) -> Verdict:
    """Scene 5: error variance against s^2 / 12, from `levels.rounding_error`."""
    ratio, told = facts["ratio"], f"Error variance is {facts['ratio']:.2f} times s²/12"
    if facts["clipped"] > 0.001:
        share = 100 * facts["clipped"]
        return Verdict("clips", f"{told}; {share:.1f} % of the values lie beyond the last level.")
    if 0.8 <= ratio <= 1.25:
        return Verdict("holds", f"{told}: the scale alone sets the error, not the values.")
    words = "levels are so coarse that values crowd inside few cells"
    return Verdict("coarse", f"{told}: {words}.")


def clipping(loss: dict[str, float], bits: int) -> Verdict:
    """Scene 6: what the widest clip point loses, from `levels.min_max_loss`."""
    told = (
        f"At {bits} bits the best clip point is {loss['best']:.1f} standard deviations; min-max, "
        f"at {loss['widest']:.1f}, loses {loss['loss_db']:.1f} dB"
    )
    if loss["loss_db"] >= CLEAR_DB:
        return Verdict("clip", f"{told}: cutting a few values off pays.")
    return Verdict("keep", f"{told}: with this many levels there is little to win.")


def granularity(table: pd.DataFrame) -> Verdict:
    """Scene 7: gain of a range per channel over one per tensor, from `levels.granularity`."""
    gain = float(table["gain"].median())
    told = f"A range per output channel gains {gain:.1f} dB (median of {len(table)} layers)"
    if gain >= CLEAR_DB:
        return Verdict("holds", f"{told}, at the same number of bits.")
    if gain > -CLEAR_DB:
        return Verdict("weaker", f"{told}: little, for this net's channels are much alike.")
    return Verdict("opposite", f"{told}: here it loses.")


def harder_half(w4a8: float, w8a4: float) -> Verdict:
    """Scene 8: mean SQNR with weights at 4 bits against activations at 4 bits, dB."""
    gap = w4a8 - w8a4
    told = f"W4A8 keeps {w4a8:.1f} dB and W8A4 {w8a4:.1f} dB"
    if gap > CLEAR_DB:
        return Verdict(
            "activations",
            f"{told}: per answer, 4-bit activations hurt more, by {gap:.1f} dB.",
        )
    if gap < -CLEAR_DB:
        return Verdict(
            "weights",
            f"{told}: per answer, 4-bit weights hurt more, by {-gap:.1f} dB.",
        )
    return Verdict("equal", f"{told}: within {CLEAR_DB:g} dB, neither half is the harder one.")


def answers_or_pictures(db: Sequence[float], errors: Sequence[pd.Series]) -> Verdict:
    """Scene 14: do W4A8 and W8A4 rank alike by answer (dB) and by final picture (paired error)?

    Args:
        db: mean SQNR of the two.
        errors: columns mse, mse_low, mse_high of the two.

    """
    first, second = errors
    told = (
        f"W4A8 answers with {db[0]:.1f} dB and W8A4 with {db[1]:.1f} dB; pictures are off by "
        f"{first.mse:.3f} and {second.mse:.3f}"
    )
    if first.mse_low <= second.mse_high and second.mse_low <= first.mse_high:
        return Verdict("unclear", f"{told}, too close to rank.")
    alike = (db[0] > db[1]) == (first.mse < second.mse)
    if alike:
        return Verdict("same", f"{told}: the better answers give the closer pictures.")
    return Verdict(
        "contrary",
        f"{told}: SQNR does not rank pictures, for it does not ask what an answer decides.",
    )


def worst_step(curve: pd.DataFrame, name: str) -> Verdict:
    """Scene 9: where the mean SQNR over seeds is lowest; columns step, db of one series."""
    means = curve.groupby("step")["db"].mean()
    first, last, total = float(means.iloc[0]), float(means.iloc[-1]), len(means)
    place = int(means.reset_index(drop=True).idxmin())
    told = f"At {name} the first step (pure noise) has {first:.1f} dB, the last {last:.1f} dB"
    if place >= total - max(1, total // 4):
        return Verdict("last", f"{told}: the prediction is worst near the finished picture.")
    if place < max(1, total // 4):
        return Verdict("first", f"{told}: the prediction is worst near pure noise.")
    low = float(means.min())
    return Verdict(
        "middle", f"{told}; the lowest is {low:.1f} dB, at step {means.idxmin()}, in between."
    )


def single_steps(single: pd.DataFrame, curve: pd.DataFrame, together: float) -> Verdict:
    """Scene 10: does the step of lowest SQNR do the most damage?

    Args:
        single: columns step, seed, error of the final picture with one step quantized.
        curve: columns step, db.
        together: mean squared error with all steps quantized.

    """
    means = single.groupby("step")["error"].mean()
    worst, lowest = int(means.idxmax()), int(curve.groupby("step")["db"].mean().idxmin())
    share, total = float(means.sum()) / together, len(means)
    told = (
        f"Quantizing step {worst} alone moves the final picture furthest; "
        f"SQNR is lowest at step {lowest}"
    )
    sums = f"All {total} single errors add up to {share:.2f} times the error of all steps together"
    if share > 1.25:
        sums += ": each step moves the picture elsewhere, so distances do not add."
    elif share < 0.8:
        sums += ": together, steps do more harm than one by one."
    else:
        sums += ": errors of single steps nearly add up."
    if abs(worst - lowest) > total // 5:
        return Verdict("elsewhere", f"{told}, far away. {sums}")
    return Verdict("same", f"{told}, close by. {sums}")


def inheritance(step: int | None, last: int) -> Verdict:
    """Scene 11: from which step the inherited error stays above the fresh one; None if never."""
    if step is None:
        return Verdict(
            "never",
            f"Up to the last step, {last}, fresh error is not overtaken for good: repairing "
            "each step's own rounding repairs most.",
        )
    if step <= last // 2:
        return Verdict(
            "early",
            f"From step {step} of {last} on the inherited error is the larger: most of the run "
            "works on a picture that already went astray.",
        )
    return Verdict(
        "late",
        f"Only from step {step} of {last} on is the inherited error the larger: for most of the "
        "run the damage is made fresh.",
    )


def drifting(ratios: pd.Series, limit: float) -> Verdict:
    """Scene 12: share of sites whose range drifts by more than `limit`."""
    share, largest = float((ratios > limit).mean()), float(ratios.max())
    told = (
        f"{100 * share:.0f} % of the sites have R > {limit:g}; the largest R is {largest:.1f} "
        f"and the median {float(ratios.median()):.2f}"
    )
    if share >= 0.25:
        return Verdict("many", f"{told}: for many sites any single range cuts or wastes levels.")
    if share >= 0.05:
        return Verdict("some", f"{told}: some sites drift, most do not.")
    return Verdict("few", f"{told}: in this net ranges hardly drift.")


def end_layers(ends: float, others: float) -> Verdict:
    """Scene 13: first and last convolution at 4 bits against all other layers, mean dB."""
    told = (
        f"With only the first and last convolution's inputs at 4 bits {ends:.1f} dB are left, "
        f"with all others {others:.1f} dB"
    )
    if ends < others - CLEAR_DB:
        return Verdict("holds", f"{told}: two layers of many do the most damage.")
    if ends <= others + CLEAR_DB:
        return Verdict("weaker", f"{told}: two layers hurt as much as all the rest together.")
    return Verdict("opposite", f"{told}: here the many outweigh the two.")


def opposite_ranks(pairs: pd.DataFrame, settings: int) -> Verdict:
    """Scene 14: settings on which the two measures disagree, from `quality.opposite_pairs`."""
    total = settings * (settings - 1) // 2
    if pairs.empty:
        return Verdict(
            "agree",
            f"In none of {total} pairs of settings do the two measures disagree beyond doubt.",
        )
    top = pairs.iloc[0]
    return Verdict(
        "disagree",
        f"In {len(pairs)} of {total} pairs of settings the two disagree beyond doubt. "
        f"{top.closer} is {top.mse_ratio:.1f} times closer to full precision than {top.lower}, "
        f"yet {top.lower} has the lower Fréchet distance, by a factor {top.frechet_ratio:.1f}.",
    )
