"""Directions that the five corrections should move a small network in, each judged by a margin.

They are what a pilot on another small network showed, in the terms of the papers: shares of steps
that gain, paired errors that fall, variances that come out as the mathematics says.
"""

import pandas as pd

from dqlab.phenomena import correction_checks as checks
from dqlab.phenomena import correction_sets as sets
from dqlab.phenomena import correction_variants as variants
from dqlab.phenomena import error_correction as ledger
from dqlab.phenomena import stored
from dqlab.phenomena.correction_claims import (
    ETA_0,
    FIRST,
    LOWEST,
    NORMAL,
    Frames,
    fall,
    gain_of,
)
from dqlab.phenomena.ledger import Claim
from dqlab.phenomena.smoothing import synthetic_gain

BETWEEN, EIGHT = "W4A6", "W8A8"
STEPS_SHARE = 90.0
"""Per cent of the steps at which a direction should hold; at half of them it is chance."""
OFTEN = {5: "every 5th step", 2: "every 2nd step", 1: "at every step"}
"""QNCD's intervals beside the paper's 10."""
STRETCHED = 3.0
"""A block whose largest factor is so many times the median one is worth smoothing."""


def shipped() -> list[stored.Stored]:
    """Everything that is stored of error correction; the first has the ledger and the tables."""
    return [stored.load(module.NAME) for module in (ledger, variants, checks, sets)]


def joined(*found: Frames) -> dict[str, pd.DataFrame]:
    """Several sets of results as one: frames of the same name are put under each other."""
    names = {name: None for frames in found for name in frames}
    return {
        name: pd.concat([frames[name] for frames in found if name in frames]) for name in names
    }


def share_of_steps(
    steps: pd.DataFrame,
    name: str,
    low: float,
    over: str = "rtn",
    bits: str = FIRST,
    high: float = float("inf"),
) -> float:
    """Per cent of the sampling steps whose gain lies from `low` to `high` dB."""
    mine = (steps["name"] == name) & (steps["over"] == over) & (steps["bits"] == bits)
    gain = steps[mine & (steps["sampler"] == ETA_0)]["gain"]
    return float(100 * gain.between(low, high).mean())


def of_row(frame: pd.DataFrame, key: str, **where: object) -> tuple[float, float, float]:
    """A number of the one row that is wanted, and its interval.

    The interval's columns are low and high, or `key`_low and `key`_high.
    """
    for column, value in where.items():
        frame = frame[frame[column] == value]
    row = frame.iloc[0]
    ends = [row[f"{key}_{end}"] if f"{key}_low" in row else row[end] for end in ("low", "high")]
    return float(row[key]), float(ends[0]), float(ends[1])


def directions(frames: Frames) -> dict[str, Claim]:
    """Every direction with its number, from `joined` frames."""
    return _ptqd(frames) | _d2_dpm(frames) | _tac(frames) | _qncd(frames) | _softmax(frames)


def _share(says: str, share: float) -> Claim:
    return Claim(says, "", share, share, share, "% of steps", STEPS_SHARE, 50.0)


def _number(says: str, value: float, unit: str, full: float, least: float) -> Claim:
    return Claim(says, "", value, value, value, unit, full, least)


def _ptqd(frames: Frames) -> dict[str, Claim]:
    steps, gains, errors = frames["steps"], frames["gains"], frames["errors"]
    rows = frames["budgets"].query("bits == @LOWEST and name == 'rtn'").sort_values("step")
    ratio = (rows["power"] / rows[["bias", "slope", "rest"]].sum(axis=1)) ** 0.5
    return {
        "ptqd steps": _share(
            "PTQD: a step's prediction gains (W4A8)", share_of_steps(steps, "ptqd", 0.0)
        ),
        "ptqd steps between": _share(
            "PTQD: the same at W4A6", share_of_steps(steps, "ptqd", 0.0, bits=BETWEEN)
        ),
        "ptqd between": Claim(
            "PTQD: SQNR rises (W4A6)", "", *gain_of(gains, "ptqd", "rtn", BETWEEN), "dB", 0.3,
        ),
        "ptqd pictures between": Claim(
            "PTQD: pictures come closer (W4A6)", "", *fall(errors, "ptqd", "rtn", BETWEEN), "%",
            30.0,
        ),
        "ptqd eight": Claim(
            "PTQD: nothing is lost where there is little to gain (W8A8)", "",
            *gain_of(gains, "ptqd", "rtn", EIGHT), "dB", -0.1, -0.2,
        ),
        "ptqd ratio": _number(
            "PTQD: SNR^Q falls from the first to the last step (W4A4, by a factor)",
            float(ratio.iloc[0] / ratio.iloc[-1]), "×", 3.0, 1.0,
        ),
        **{
            f"ptqd normal {bits}": _share(
                f"PTQD: its residual is nearly normal (excess kurtosis within {NORMAL:g}, {bits})",
                float(100 * (part["kurtosis_residual"].abs() <= NORMAL).mean()),
            )
            for bits, part in frames["shapes"].groupby("bits", sort=False)
        },
        "ptqd guidance": Claim(
            "PTQD: tables of guidance 4 serve guidance 2 worse, by", "",
            *of_row(frames["misplaced"], "gain", method="ptqd", option="guidance 4"), "dB", 0.1,
        ),
        "ptqd fewer steps": Claim(
            "PTQD: tables of 10 steps serve 20 steps worse, by", "",
            *of_row(frames["misplaced"], "gain", method="ptqd", option="10 steps"), "dB", 0.1,
        ),
        "ptqd set": Claim(
            "PTQD: its variance part brings the set closer (fall of the Frechet distance, "
            f"{_pictures(frames)}, eta 1, W4A4)", "FID falls by 0.2", *_set_fall(frames), "%", 3.0,
        ),
    }  # fmt: skip


def _d2_dpm(frames: Frames) -> dict[str, Claim]:
    steps, gains, errors = frames["steps"], frames["gains"], frames["errors"]
    lost, drawn = frames["spread"]["lost"], frames["spread"]["drawn"]
    law = frames["lost"].query("runs == 'the fitted themselves'")["lost"]
    found = {}
    for bits in (FIRST, BETWEEN):
        found[f"d2-dpm steps {bits}"] = _share(
            f"D2-DPM: a step's prediction gains ({bits})",
            share_of_steps(steps, "d2-dpm", 0.0, bits=bits),
        )
    for name in ("d2-dpm", "d2-dpm, channel"):
        found[f"{name} and ptqd"] = Claim(
            f"{name}: SQNR at least PTQD's (W4A8)", "", *gain_of(gains, name, "ptqd"), "dB",
            -0.02, -0.1,
        )  # fmt: skip
        found[f"{name} pictures and ptqd"] = Claim(
            f"{name}: pictures at least as close as PTQD's (fall over PTQD, W4A8)", "",
            *fall(errors, name, "ptqd"), "%", -10.0, -30.0,
        )  # fmt: skip
    between = share_of_steps(steps, "d2-dpm, stochastic", -3.3, "d2-dpm", high=-2.7)
    return found | {
        "d2-dpm three": _share("D2-DPM: a draw costs 3.0 ± 0.3 dB (W4A8)", between),
        "d2-dpm spread": _share(
            "D2-DPM: a draw leaves the spread of predictions within 0.5 %",
            float(100 * (drawn.abs() <= 0.005).mean()),
        ),
        "d2-dpm law": _share(
            "D2-DPM: on the runs it was fitted to the mean takes v_c of variance, within 10 %",
            float(100 * ((law - 1).abs() <= 0.1).mean()),
        ),
        "d2-dpm shrunk": _share(
            "D2-DPM: and on held-out runs, too",
            float(100 * ((lost - 1).abs() <= 0.1).mean()),
        ),
        "d2-dpm guidance": Claim(
            "D2-DPM: tables of guidance 4 serve guidance 2 worse, by (per channel)", "",
            *of_row(frames["misplaced"], "gain", method="d2-dpm", option="guidance 4"), "dB", 0.1,
        ),
        "d2-dpm pixels": Claim(
            "D2-DPM: its variance part brings the variance of pixels over seeds closer to full "
            "precision's (eta 1, W4A4)", "", *_pixels_closer(frames), "%", 0.1,
        ),
    }  # fmt: skip


def _pictures(frames: Frames) -> str:
    """How many pictures a set has, in words."""
    return f"{int(frames['sets']['pictures'].iloc[0])} pictures"


def _set_fall(frames: Frames, name: str = "ptqd") -> tuple[float, float, float]:
    """By how many per cent the variance part lowers the distance of a set."""
    gap, low, high = of_row(frames["made room"], "distance", name=name)
    whole = of_row(frames["sets"], "distance", name=name)[0] - gap
    return tuple(-100 * x / whole for x in (gap, high, low))


def _pixels_closer(frames: Frames, name: str = "d2-dpm") -> tuple[float, float, float]:
    """By how many per cent of full precision's variance the variance part comes closer to it.

    The interval is that of the change, taken towards full precision's.
    """
    gap, low, high = of_row(frames["made room"], "variance", name=name)
    after = of_row(frames["sets"], "variance", name=name)[0]
    closer = abs(after - gap - 1) - abs(after - 1)
    ends = sorted(closer + sign * (high - low) / 2 for sign in (-1, 1))
    return 100 * closer, 100 * ends[0], 100 * ends[1]


def _tac(frames: Frames) -> dict[str, Claim]:
    errors, found = frames["errors"], {}
    for bits, full in ((BETWEEN, 50.0), (LOWEST, 10.0)):
        found[f"input bias {bits}"] = Claim(
            f"TAC: correcting inputs alone brings pictures closer (fall, {bits})", "",
            *fall(errors, "tac, input bias", "rtn", bits), "%", full,
        )  # fmt: skip
    for bits in (FIRST, BETWEEN, LOWEST):
        found[f"reconstruction {bits}"] = Claim(
            f"TAC: a coefficient on top does not hurt (fall over input bias, {bits})", "",
            *fall(errors, "tac-diffusion", "tac, input bias", bits), "%", -5.0, -15.0,
        )  # fmt: skip
    pair = "tac-diffusion", "tac, own trajectory"
    few = "tac, bias per channel from 8 runs", "tac, bias from 8 runs"
    return found | {
        "coefficient steps": _share(
            "TAC: its coefficient loses no step over 0.05 dB (W4A8)",
            share_of_steps(frames["steps"], "tac-diffusion", -0.05),
        ),
        "pairing": Claim(
            "TAC: the same input for both networks is no worse than each on its own trajectory "
            "(fall, W4A8)", "", *fall(errors, *pair), "%", -5.0, -15.0,
        ),
        "few": Claim(
            "TAC: from 8 runs a bias per channel beats one per element, which overfits (fall, "
            "W4A8)", "", *fall(errors, *few), "%", 5.0,
        ),
    }  # fmt: skip


def _qncd(frames: Frames) -> dict[str, Claim]:
    smoothing, estimates = frames["smoothing"], frames["own estimates"]
    scaled = smoothing[smoothing["model"] == "pixel-unet"]["ratio"]
    worst = float(smoothing["gain"].min())
    off = float((estimates["estimate"] - estimates["truth"]).abs().max())
    return {
        "stretched": _number(
            f"QNCD: smoothing gains where a block is stretched {STRETCHED:g} times (made up, A6; "
            f"pixel-unet's reach {scaled.max():.1f})",
            float(synthetic_gain([STRETCHED])["gain"][0]), "dB", 2.0, 0.0,
        ),
        "floor": _number(
            f"QNCD: with floor 1 no block loses (both networks, {len(smoothing)} blocks, A6), "
            "worst block", worst, "dB", -1.5, -3.0,
        ),
        "estimate off": _number(
            f"QNCD: the estimate misses the true mean of its own run by {off:.3f} at most (the "
            "allowed 0.02 over it, 64 pictures)", 0.02 / off, "×", 1.0, 0.5,
        ),
        **{
            f"often {i}": Claim(
                f"QNCD: estimating {words} is worse than every 10th (rise of the paired error)",
                "", *_rise(frames["errors"], i), "%", 10.0,
            )
            for i, words in OFTEN.items()
        },
    }  # fmt: skip


def _rise(errors: pd.DataFrame, interval: int) -> tuple[float, float, float]:
    middle, low, high = fall(errors, f"qncd, I = {interval}", "qncd, I = 10")
    return -middle, -high, -low


def _softmax(frames: Frames) -> dict[str, Claim]:
    table = frames["softmax"].set_index(["bits", "granularity"])
    eight = table.loc[(8, "head")]
    rows = frames["mass"]["row_sum"]
    timed = float(table.loc[(4, "head_timestep"), "db"] - table.loc[(4, "head"), "db"])
    steps = share_of_steps(frames["steps"], "head", 5.0, "none", "softmax 4")
    inside = float(100 * rows.between(0.95, 1.05).mean())
    six = table.loc[(6, "head"), ["gain", "low", "high"]]
    gains = frames["attention"].set_index(["others", "samples"])["gain"]
    alone, beside = gains["full precision"], float(gains["W4A8"].iloc[0])
    return {
        "softmax steps": _share("Softmax: a step gains 5 dB (4 bits)", steps),
        "softmax six": Claim("Softmax: at 6 bits it helps", "", *six, "dB", 1.0),
        "softmax eight": _number(
            "Softmax: at 8 bits and 64 keys SQNR changes by less than 0.1 dB",
            -abs(float(eight["gain"])), "dB", -0.1, -0.5,
        ),
        "softmax rows": _number(
            f"Softmax: rows sum to 0.95 to 1.05 on held-out states ({len(rows)} heads, 4 bits)",
            inside, "% of heads", 100.0, 50.0,
        ),
        "softmax one": _number(
            "Softmax: constants of one run do as well as those of 8 (4 bits)",
            alone[1] - alone[8], "dB", -1.0, -3.0,
        ),
        "softmax rough": _number(
            "Softmax: beside other rounding less of the gain is left (W4A8, by)",
            alone[8] - beside, "dB", 0.1, 0.0,
        ),
        "softmax timed": _number(
            "Softmax: a constant per head and step is no worse than per head (4 bits)", timed,
            "dB", -0.1, -0.5,
        ),
    }  # fmt: skip
