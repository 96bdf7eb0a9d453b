r"""What the claims of TFMQ-DM and QVD came to, from lines that tests/benchmarks measured.

    python tests/benchmarks/time_information.py --model NAME --parts PART \
        --out data/results/measured/time-information.jsonl

takes from a minute (ablation) to ten (qvd on video-unet) on one core; each line holds its own
model, bits, seeds, hashes, commit and date.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dqlab.errors import UnknownNameError
from dqlab.metrics.results import Result, read
from dqlab.models.loading import find_folder, weights_hash
from dqlab.paths import data_dir
from dqlab.phenomena.ledger import OUTCOMES, Claim
from dqlab.phenomena.verdicts import Verdict

FILE = "time-information.jsonl"
VARIATION = "frame_error_variation"
OWN = "searched on its own rows"
OVER_LAYERS = ("layer_gain_db", "time_feature_gain_db")
"""Gains whose interval is over layers or blocks, not over seeds."""


@dataclass(frozen=True)
class Check:
    """A claim and the line that decides it.

    Attributes:
        says: the claim.
        quoted: the paper's own figure, in words.
        model, bits, recipe, metric, against: of the line.
        full, least: margins, as in `Claim`.

    """

    says: str
    quoted: str
    model: str
    bits: tuple[int | None, int | None]
    recipe: str
    metric: str
    against: str | None
    full: float
    least: float = 0.0


NEAREST, NO_TIAR = "time path, nearest and one range", "tfmq-dm nearest, scope none"
TFMQ = {
    "freeze": Check(
        "projections left out of their blocks keep time features better (W4, 32 states, 300 "
        "updates)",
        "FID 9.36 to 7.08, LSUN-Bedrooms, W4A8", "latent-unet", (4, None),
        "time path rounded by nearest", "time_feature_gain_db", "time path rounded by blocks", 1.0,
    ),
    "trajectory": Check(
        "TIAR and ranges by step turn the last latents less (path alone, W4A4)",
        "cosine 0.92 without them", "latent-unet", (4, 4), "time path, tfmq-dm",
        "last_latent_gain_db", NEAREST, 1.0,
    ),
    "kept": Check(
        "kept features turn them less, too", "", "latent-unet", (4, 4),
        "time path, features kept", "last_latent_gain_db", NEAREST, 1.0,
    ),
    "tiar": Check(
        "TIAR helps the whole network (eps, W4A8)", "FID 9.36 to 4.84 (from a summary)",
        "latent-unet", (4, 8), "tfmq-dm tiar, scope none", "eps_sqnr_gain_db", NO_TIAR, 0.5,
    ),
    "tib": Check(
        "with ranges by step on the path too", "", "latent-unet",
        (4, 8), "tfmq-dm tiar, scope tib", "eps_sqnr_gain_db", NO_TIAR, 0.5,
    ),
    "all": Check(
        "with ranges by step everywhere, as the released code has it",
        "FID 9.36 to 3.68, LSUN-Bedrooms", "latent-unet",
        (4, 8), "tfmq-dm tiar, scope all", "eps_sqnr_gain_db", NO_TIAR, 0.5,
    ),
}  # fmt: skip
"""TFMQ-DM's, on pictures."""

NONE, BASE = "scri alpha none", "qvd base"
QVD = {
    "scri": Check(
        "equal channel ranges help 4-bit activations (layers, W8A4)", "", "video-unet", (8, 4),
        "scri alpha 1", "layer_gain_db", NONE, 3.0,
    ),
    "scri 8": Check(
        "equal channel ranges help at 8 bits (layers, W8A8)", "", "video-unet", (8, 8),
        "scri alpha 1", "layer_gain_db", NONE, 3.0,
    ),
    "searched": Check(
        "searched alpha helps 4-bit activations (layers, W8A4)", "", "video-unet", (8, 4),
        "scri alpha searched", "layer_gain_db", NONE, 1.0,
    ),
    "searched 4": Check(
        "searched alpha helps 4-bit weights (layers, W4A6)", "", "video-unet", (4, 6),
        "scri alpha searched", "layer_gain_db", NONE, 1.0,
    ),
    "htdq": Check(
        "HTDQ helps the whole network (eps, W8A8)", "", "video-unet", (8, 8),
        "qvd base + htdq", "eps_sqnr_gain_db", BASE, 0.5,
    ),
    "log2": Check(
        "the port's log2 grid helps the network (eps, W8A8)", "", "video-unet", (8, 8),
        "qvd base + log2", "eps_sqnr_gain_db", BASE, 0.5,
    ),
    "steps": Check(
        "TFMQ-DM's range by step helps the network (eps, W8A8)", "", "video-unet", (8, 8),
        "qvd base + ranges by step", "eps_sqnr_gain_db", BASE, 0.5,
    ),
    "integrated": Check(
        "SCRI helps the whole network (eps, W8A8)", "", "video-unet",
        (8, 8), "qvd base + scri", "eps_sqnr_gain_db", BASE, 0.5,
    ),
    "both": Check(
        "both parts together help (eps, W8A8)", "FVD better by 205.12", "video-unet", (8, 8),
        "qvd", "eps_sqnr_gain_db", BASE, 0.5,
    ),
    "plain": Check(
        "QVD beats plain rounding (eps, W6A6)", "", "video-unet", (6, 6), "qvd",
        "eps_sqnr_gain_db", "rtn", 0.5,
    ),
    "by frame": Check(
        "ranges by frame help both parts (eps, W8A8)", "", "video-unet", (8, 8),
        "qvd, ranges by frame", "eps_sqnr_gain_db", BASE, 0.5,
    ),
    "htdq, 6 bits": Check(
        "HTDQ helps the whole network (eps, W6A6)", "", "video-unet", (6, 6),
        "qvd base + htdq", "eps_sqnr_gain_db", BASE, 0.5,
    ),
    "integrated, 6 bits": Check(
        "SCRI helps the whole network (eps, W6A6)", "", "video-unet", (6, 6),
        "qvd base + scri", "eps_sqnr_gain_db", BASE, 0.5,
    ),
    "both, 6 bits": Check(
        "both parts together help (eps, W6A6)", "", "video-unet", (6, 6), "qvd",
        "eps_sqnr_gain_db", BASE, 0.5,
    ),
    "by frame, 6 bits": Check(
        "ranges by frame help both parts (eps, W6A6)", "", "video-unet", (6, 6),
        "qvd, ranges by frame", "eps_sqnr_gain_db", BASE, 0.5,
    ),
} | {
    f"{name} {w}:{a}": Check(
        f"{says}, W{w}A{a})", "", "video-unet", (w, a), "qvd", f"{metric}_gain_db", "rtn", 0.5
    )
    for w, a in ((8, 8), (6, 6), (4, 6))
    for name, says, metric in (
        ("clips", "clips lie nearer to full precision's than plain rounding's (frames",
         "frame_mse"),
        ("moves", "clips move more like them (differences of frames", "frame_difference_error"),
        ("features", "a video classifier tells them less apart (features", "video_feature_mse"),
    )
}  # fmt: skip
"""QVD's, on videos."""
HEAVY = Check(
    "equal channel ranges help where weights have 4 bits (layers, W4A6)", "", "video-unet", (4, 6),
    "scri alpha 1", "layer_gain_db", NONE, 1.0,
)  # fmt: skip
"""Nobody claims it: the other end of SCRI's see-saw."""


def lines() -> list[Result]:
    """All that was measured.

    Raises:
        CheckpointError: if the file is missing or damaged.

    """
    return read(data_dir() / "results" / "measured" / FILE)


def value(
    found: Sequence[Result],
    model: str,
    bits: tuple[int | None, int | None],
    recipe: str,
    metric: str,
    against: str | None = None,
) -> Result:
    """The latest line of a kind.

    Raises:
        UnknownNameError: if there is none, with what was measured of this recipe.

    """
    mine = [r for r in found if (r.model, r.recipe) == (model, recipe)]
    for r in reversed(mine):
        if ((r.weights, r.activations), r.metric, r.against) == (bits, metric, against):
            return r
    measured = sorted({f"W{r.weights}A{r.activations} {r.metric}" for r in mine}) or ["nothing"]
    raise UnknownNameError(
        f"No line has W{bits[0]}A{bits[1]} {metric} of {recipe!r} on {model} over {against!r}; "
        f"of that recipe there is {', '.join(measured)}. Run tests/benchmarks/time_information.py."
    )


def claim(found: Sequence[Result], check: Check) -> Claim:
    """A check with its number, interval, and the seeds behind them."""
    at = check.model, check.bits, check.recipe, check.metric, check.against
    line = value(found, *at)
    low, high = line.interval or (line.value, line.value)
    margins = check.full, check.least
    says = _with_seeds(check, line.seeds[1])
    return Claim(says, check.quoted, line.value, low, high, line.unit, *margins)


def _with_seeds(check: Check, count: int) -> str:
    """The claim's words; how many held-out seeds its number is over, where it is over seeds."""
    if check.metric in OVER_LAYERS:
        return check.says
    head, bracket, tail = check.says.rpartition("(")
    inside = f"{tail.rstrip(')')}, {count} seeds" if bracket else f"{count} seeds"
    return f"{head.rstrip() if bracket else check.says} ({inside})"


def of_tfmq(found: Sequence[Result]) -> dict[str, Claim]:
    """TFMQ-DM's claims that were measured."""
    return {name: claim(found, check) for name, check in TFMQ.items() if _has(found, check)}


def of_qvd(found: Sequence[Result]) -> dict[str, Claim]:
    """QVD's claims that were measured."""
    whole = {name: claim(found, check) for name, check in QVD.items() if _has(found, check)}
    return _alike(found) | whole


def missing(found: Sequence[Result]) -> list[str]:
    """Claims that no line decides yet."""
    return [check.says for check in (TFMQ | QVD).values() if not _has(found, check)]


def _has(found: Sequence[Result], check: Check) -> bool:
    try:
        claim(found, check)
    except UnknownNameError:
        return False
    return True


def _alike(found: Sequence[Result]) -> dict[str, Claim]:
    """From two lines, the interval from the ends of both."""
    time, rest = (
        value(found, "video-unet", (None, 4), f"activations of {part} alone", VARIATION)
        for part in ("time features", "all but them")
    )
    ends = rest.interval[0] - time.interval[1], rest.interval[1] - time.interval[0]
    says = "errors of time features hit all frames alike (variation over frames, A4)"
    return {"frames": Claim(says, "", rest.value - time.value, *ends, "", 0.05)}


def alphas(found: Sequence[Result], bits: tuple[int, int]) -> pd.DataFrame:
    """SCRI layer by layer on videos: columns alpha, db, gain, improved."""
    rows = []
    for alpha in ("none", "0", "0.25", "0.5", "0.75", "1", "searched", OWN, "hindsight"):
        name = f"scri alpha {alpha}"
        db = value(found, "video-unet", bits, name, "layer_sqnr_db").value
        gain, improved = (
            value(found, "video-unet", bits, name, metric, NONE).value
            for metric in ("layer_gain_db", "layers_improved")
        )
        rows.append((alpha, db, gain, improved))
    return pd.DataFrame(rows, columns=["alpha", "db", "gain", "improved"])


def ablation(found: Sequence[Result]) -> pd.DataFrame:
    """TFMQ-DM's parts on and off in whole networks at W4A8: temporal, scope, db, gain, low, high.

    Raises:
        UnknownNameError: if an arm was not measured.

    """
    rows = []
    for temporal in ("nearest", "tiar"):
        for scope in ("none", "tib", "all"):
            at = "latent-unet", (4, 8), f"tfmq-dm {temporal}, scope {scope}"
            gain, ends = 0.0, (0.0, 0.0)
            if at[2] != NO_TIAR:
                line = value(found, *at, "eps_sqnr_gain_db", NO_TIAR)
                gain, ends = line.value, line.interval
            rows.append((temporal, scope, value(found, *at, "eps_sqnr_db").value, gain, *ends))
    return pd.DataFrame(rows, columns=["temporal", "scope", "db", "gain", "low", "high"])


def monotone(table: pd.DataFrame) -> Verdict:
    """Whether every part of TFMQ-DM that is added lowers the error of `ablation`'s networks."""
    grid = table.pivot(index="temporal", columns="scope", values="gain")[["none", "tib", "all"]]
    added = [*grid.diff(axis=1).iloc[:, 1:].to_numpy().ravel(), *grid.diff().iloc[1]]
    widest = float((table["high"] - table["low"]).max()) / 2
    told = f"Of {len(added)} additions of one part, {sum(a > 0 for a in added)} gain"
    told += f", between {min(added):+.2f} and {max(added):+.2f} dB"
    if min(added) > widest:
        return Verdict("holds", f"{told}: each part helps the network.")
    if max(map(abs, added)) <= widest:
        return Verdict("noise", f"{told}: within the intervals ({widest:.2f} dB to either side), "
                       "so no part is told from none here.")  # fmt: skip
    return Verdict("mixed", f"{told}: not every part helps.")


def see_saw(found: Sequence[Result]) -> Verdict:
    """Whether what SCRI takes from activations enters the weights: alpha = 1 at W8A4 and W4A6."""
    wide, narrow = (claim(found, check) for check in (QVD["scri"], HEAVY))
    told = (
        f"Equal channel ranges gain {_gain(wide)} where weights have 8 bits and activations 4, "
        f"and {_gain(narrow)} where weights have 4 and activations 6"
    )
    if wide.low > 0 > narrow.high:
        return Verdict("holds", f"{told}: what leaves the activations enters the weights.")
    if wide.low > 0 >= narrow.low:
        return Verdict("weaker", f"{told}: there, no gain is certain any more.")
    return Verdict("opposite", f"{told}: weights do not pay for it here.")


def _gain(of: Claim) -> str:
    return f"{of.measured:+.1f} dB [{of.low:+.1f}, {of.high:+.1f}]"


def tally(claims: Mapping[str, Claim]) -> str:
    """How many claims came to what."""
    counted = Counter(claim.outcome for claim in claims.values())
    return ", ".join(f"{counted[outcome]} × {outcome}" for outcome in OUTCOMES)


def stale(found: Sequence[Result], now: Mapping[str, str] | None = None) -> str:
    """Which models' lines are of weights that no longer ship, in a sentence; empty if none are.

    Args:
        found: the lines; the latest of a kind counts.
        now: hashes of the models' weights as they are; those of the folders by default.

    """
    names = {r.model for r in found}
    now = {n: weights_hash(find_folder(n)) for n in names} if now is None else now
    latest = {(r.model, r.recipe, r.weights, r.activations, r.metric, r.against): r for r in found}
    old = Counter(r.model for r in latest.values() if r.hashes["model"] != now[r.model])
    if not old:
        return ""
    parts = ", ".join(f"{count} of {model}" for model, count in sorted(old.items()))
    return f"Measured before the model was trained on, and due to be measured again: {parts}."


def told(found: Sequence[Result]) -> str:
    """Where the numbers come from, in a sentence."""
    days, machines = sorted({r.date for r in found}), sorted({r.machine for r in found})
    models = sorted({f"{r.model} {r.hashes['model']}" for r in found})
    return (
        f"{len(found)} lines of {', '.join(models)}, measured {days[0]} to {days[-1]} on "
        f"{', '.join(machines)}. Regenerate: python tests/benchmarks/time_information.py"
    )
