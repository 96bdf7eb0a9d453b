"""What the measurements of 1.5-error-correction say: findings in words, claims with margins."""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from dqlab.metrics.intervals import DRAWS
from dqlab.phenomena.budget import bias_gain_db
from dqlab.phenomena.ledger import Claim, claims_frame
from dqlab.phenomena.slopes import WITHIN
from dqlab.phenomena.verdicts import Verdict

ETA_0, ETA_1, MULTISTEP = "DDIM, eta 0", "DDIM, eta 1", "DPM-Solver++"
FIRST, LOWEST = "W4A8", "W4A4"
TINY = 1e-12
TILTED = 0.3
"""Correlation from which a tenth of the error's variance follows the prediction."""
NORMAL = 0.5
"""Excess kurtosis up to which a residual passes for normal."""
LITTLE_DB = 0.1
"""A part whose removal gains less than this repairs nothing worth naming."""

Frames = Mapping[str, pd.DataFrame]


def errors_of(errors: pd.DataFrame, name: str, bits: str = FIRST, sampler: str = ETA_0) -> Tensor:
    """Paired squared errors `[N]` of one setting, by seed."""
    mine = (errors["name"] == name) & (errors["bits"] == bits) & (errors["sampler"] == sampler)
    return torch.tensor(errors[mine].sort_values("seed")["mse"].to_numpy())


def fall(
    errors: pd.DataFrame, name: str, over: str = "rtn", bits: str = FIRST, sampler: str = ETA_0
) -> tuple[float, float, float]:
    """By how many per cent the paired error falls, with its 95 % interval over seeds.

    The geometric mean over pictures of the ratio of both errors: every picture is compared with
    itself and counts alike, while a ratio of medians hangs on the few pictures in the middle.
    """
    ours, theirs = (errors_of(errors, n, bits, sampler) for n in (name, over))
    ratio = (ours.clamp(min=TINY) / theirs.clamp(min=TINY)).log()
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(ratio), (DRAWS, len(ratio)), generator=generator)
    ends = torch.tensor([0.975, 0.025], dtype=ratio.dtype)
    low, high = ratio[picks].mean(1).quantile(ends).exp().tolist()
    return tuple(100 * (1 - x) for x in (float(ratio.mean().exp()), low, high))


def gain_of(
    gains: pd.DataFrame, name: str, over: str = "rtn", bits: str = FIRST, sampler: str = ETA_0
) -> tuple[float, float, float]:
    """Gain in dB of one setting over another, with its interval."""
    mine = (gains["name"] == name) & (gains["over"] == over) & (gains["bits"] == bits)
    row = gains[mine & (gains["sampler"] == sampler)].iloc[0]
    return float(row["gain"]), float(row["low"]), float(row["high"])


def share_of(shares: pd.DataFrame, part: str, bits: str = FIRST) -> tuple[float, float, float]:
    """A part's share of the error power in per cent, with its interval."""
    row = shares[(shares["part"] == part) & (shares["bits"] == bits)].iloc[0]
    return tuple(100 * float(row[name]) for name in ("share", "low", "high"))


def shared_mean(shares: pd.DataFrame, bits: str = FIRST) -> Verdict:
    """The phenomenon: how much of the error is a mean that all pictures share."""
    share, low, high = share_of(shares, "bias", bits)
    told = f"At {bits} {share:.0f} % [{low:.0f}, {high:.0f}] of the error's power is a bias"
    if low >= 10:
        return Verdict("holds", f"{told}: the same for all pictures, and so it can be known.")
    if share >= 2:
        return Verdict("weaker", f"{told}: something to take out, but not much.")
    return Verdict("absent", f"{told}: every picture has an error of its own.")


def repairs(shares: pd.DataFrame, bits: str = FIRST) -> Verdict:
    """The question: removing which part gains most, in dB of the prediction."""
    gain = {p: bias_gain_db(share_of(shares, p, bits)[0] / 100) for p in ("bias", "slope")}
    told = (
        f"At {bits} taking out the bias is worth {gain['bias']:.2f} dB, the slope "
        f"{gain['slope']:.2f} dB"
    )
    if max(gain.values()) < LITTLE_DB:
        return Verdict("none", f"{told}: nothing to repair.")
    key = max(gain, key=lambda part: gain[part])
    if abs(gain["bias"] - gain["slope"]) < LITTLE_DB:
        return Verdict("equal", f"{told}: both count.")
    return Verdict(key, f"{told}: the {key} is what can be repaired.")


def rarely(errors: pd.DataFrame) -> Verdict:
    """QNCD: whether estimating at every step is worse than estimating every tenth."""
    rare, often = (fall(errors, f"qncd, I = {i}") for i in (10, 1))
    told = (
        f"Estimating every 10th step moves the paired error by {-rare[0]:+.0f} % "
        f"[{-rare[2]:+.0f}, {-rare[1]:+.0f}], at every step by {-often[0]:+.0f} % "
        f"[{-often[2]:+.0f}, {-often[1]:+.0f}]"
    )
    if often[2] < rare[1]:
        return Verdict("holds", f"{told}: late estimates do harm.")
    if rare[2] < often[1]:
        return Verdict("opposite", f"{told}: here more estimates are better.")
    return Verdict("unclear", f"{told}: too close to call.")


def answers_or_pictures(frames: Frames, name: str = "d2-dpm", bits: str = LOWEST) -> Verdict:
    """Whether better predictions, by SQNR, also give closer pictures."""
    gain, low, high = gain_of(frames["gains"], name, "rtn", bits)
    change = fall(frames["errors"], name, "rtn", bits)
    times, rows = 1 - change[0] / 100, frames["budgets"]
    spread = rows[(rows["name"] == name) & (rows["bits"] == bits)]["spread"].mean()
    told = (
        f"At {bits} {name} answers {gain:+.1f} dB [{low:+.1f}, {high:+.1f}] better and paints "
        f"{times:.2f} times the paired error [{1 - change[2] / 100:.2f}, "
        f"{1 - change[1] / 100:.2f}]; its predictions spread {100 * spread:+.0f} %"
    )
    if low > 0 and change[2] < 0:
        return Verdict("contrary", f"{told}: better answers, farther pictures.")
    if low > 0 and change[1] > 0:
        return Verdict("same", f"{told}: better answers, closer pictures.")
    return Verdict("unclear", f"{told}: the pictures do not tell.")


def few_pictures(slopes: pd.DataFrame, bits: str = FIRST) -> Verdict:
    """Whether slopes of fitted and of held-out runs differ by more than their pictures explain."""
    mine = slopes[(slopes["bits"] == bits) & (slopes["centre"] == WITHIN)]
    fitted, held = (mine[mine["runs"] == name].iloc[0] for name in ("fitted", "held out"))
    told = [
        f"{100 * row['k']:.2f} % [{100 * row['low']:.2f}, {100 * row['high']:.2f}]"
        for row in (fitted, held)
    ]
    words = (
        f"At {bits} {fitted['count']} fitted runs have a slope of {told[0]}, {held['count']} "
        f"held-out ones {told[1]}; a single run's scatters by {100 * fitted['spread']:.2f} %"
    )
    apart = max(fitted["low"], held["low"]) > min(fitted["high"], held["high"])
    if apart:
        return Verdict("different", f"{words}: more than so few pictures explain.")
    return Verdict("few", f"{words}: so few pictures leave it open.")


def cloud(shapes: pd.DataFrame, bits: str) -> str:
    """What the median step's cloud of errors looks like, by the margins `TILTED` and `NORMAL`."""
    middle = shapes[shapes["bits"] == bits].median(numeric_only=True)
    r, tails = middle["r"], middle["kurtosis_residual"]
    tilt = "tilted" if abs(r) >= TILTED else "hardly tilted"
    shape = "nearly normal" if abs(tails) <= NORMAL else "heavy-tailed"
    return (
        f"{bits}, median step: the cloud is {tilt} (R {r + 0:+.2f}) and {shape} (excess kurtosis "
        f"of the residual {tails + 0:.1f})."
    )


def middle_drift(drift: pd.DataFrame, name: str) -> float:
    """Size of the signed mean deviation half-way along the chain, root mean square over channels.

    Args:
        drift: columns name, step, channel, mean.
        name: whose chain.

    """
    middle = int(drift["step"].max() + 1) // 2
    mine = drift[(drift["name"] == name) & (drift["step"] == middle)]
    return float((mine["mean"] ** 2).mean() ** 0.5)


def claims(frames: Frames) -> dict[str, Claim]:
    """The papers' claims on this network, with the margins they are judged by."""
    return _ptqd(frames) | _d2_dpm(frames) | _tac(frames) | _qncd(frames) | _softmax(frames)


def _ptqd(frames: Frames) -> dict[str, Claim]:
    share = 100 * frames["variance"]["share"]
    return {
        "slope": Claim(
            "PTQD: the error follows the prediction (slope's share of the error, W4A4)",
            "a tilted cloud at 4 bits", *share_of(frames["shares"], "slope", LOWEST), "%", 10.0,
            1.0,
        ),
        "ptqd": Claim(
            "PTQD: correcting predictions raises their SQNR (W4A8)", "",
            *gain_of(frames["gains"], "ptqd"), "dB", 0.3,
        ),
        "ptqd pictures": Claim(
            "PTQD: and brings pictures closer (fall of the paired error, W4A8)",
            "FID 7.75 against 116.61 (mixed bits)", *fall(frames["errors"], "ptqd"), "%", 30.0,
        ),
        "variance": Claim(
            "PTQD, D2-DPM: the sampler's noise has to make room (residual over sampler variance, "
            "eta 1, W4A8, median and quartiles over steps)",
            "FID falls by 0.2", *share.quantile([0.5, 0.25, 0.75]), "%", 10.0, 1.0,
        ),
    }  # fmt: skip


def _d2_dpm(frames: Frames) -> dict[str, Claim]:
    gain, low, high = gain_of(frames["gains"], "d2-dpm, stochastic", "d2-dpm")
    pair = "d2-dpm, channel", "ptqd"
    return {
        "d2-dpm": Claim(
            "D2-DPM: regressing on what is known beats PTQD (channel-wise, eps, W4A8)",
            "FID 9.71 against 10.41", *gain_of(frames["gains"], *pair), "dB", 0.1,
        ),
        "d2-dpm lowest": Claim(
            "D2-DPM: the same at W4A4", "", *gain_of(frames["gains"], *pair, LOWEST), "dB", 0.1,
        ),
        "d2-dpm pictures": Claim(
            "D2-DPM: and brings pictures closer (channel-wise, fall of the paired error, W4A8)",
            "", *fall(frames["errors"], "d2-dpm, channel"), "%", 40.0,
        ),
        "d2-dpm draws": Claim(
            "D2-DPM: drawing the error, not its mean, costs 10 log10 2 = 3.01 dB (W4A8)", "",
            -gain, -high, -low, "dB", 2.7,
        ),
    }  # fmt: skip


def _tac(frames: Frames) -> dict[str, Claim]:
    errors, drift = frames["errors"], frames["drift"]
    ratio = middle_drift(drift, "rtn") / middle_drift(drift, "tac-diffusion")
    return {
        "input bias": Claim(
            "TAC: correcting inputs alone brings pictures closer (fall, W4A8)", "",
            *fall(errors, "tac, input bias"), "%", 50.0,
        ),
        "reconstruction": Claim(
            "TAC: a coefficient per channel adds to that (fall, W4A8)", "",
            *fall(errors, "tac-diffusion", "tac, input bias"), "%", 10.0,
        ),
        "chain": Claim(
            "TAC: the chain drifts less (signed mean half-way, by a factor)", "",
            ratio, ratio, ratio, "×", 3.0, 1.0,
        ),
    }  # fmt: skip


def _qncd(frames: Frames) -> dict[str, Claim]:
    found = {}
    for model, kind in (("pixel-unet", "scales"), ("latent-unet", "adds")):
        gains = frames["smoothing"].query("model == @model")["gain"]
        found[f"smoothing {kind}"] = Claim(
            f"QNCD: smoothing raises SQNR where the embedding {kind} ({model}, A6, median and "
            "quartiles over blocks)", "", *gains.quantile([0.5, 0.25, 0.75]), "dB", 2.0,
        )  # fmt: skip
    found["estimate"] = Claim(
        "QNCD: a bias estimated every 10th step brings pictures closer (fall, W4A8)",
        "FID 9.48 against 9.56 (whole method)", *fall(frames["errors"], "qncd, I = 10"), "%", 30.0,
    )  # fmt: skip
    return found


def _softmax(frames: Frames) -> dict[str, Claim]:
    table = frames["softmax"].query("granularity == 'head'").set_index("bits")
    rows = {bits: table.loc[bits, ["gain", "low", "high"]] for bits in (8, 4)}
    corrected, plain = (f"softmax 4, {how}" for how in ("corrected", "uncorrected"))
    percent = fall(frames["errors"], corrected, plain, "W8A8")
    return {
        "softmax 8": Claim(
            "Softmax bias correction: 8 bits need it (eps)", "64 keys here, 4096 there",
            *rows[8], "dB", 1.0, 0.1,
        ),
        "softmax 4": Claim(
            "Softmax bias correction: at 4 bits it helps (eps)", "", *rows[4], "dB", 5.0,
        ),
        "softmax pictures": Claim(
            "Softmax bias correction: and brings pictures closer (fall, 4 bits alone)", "",
            *percent, "%", 87.5,
        ),
    }  # fmt: skip


def outcomes(frames: Frames) -> pd.DataFrame:
    """What came of every claim, and of the question and findings, from the other frames.

    Returns:
        Columns name, measured, low, high, outcome.

    """
    told = claims_frame(claims(frames))
    share = [x / 100 for x in share_of(frames["shares"], "bias")]
    told.loc[len(told)] = ["repairs", *share, repairs(frames["shares"]).key]
    told.loc[len(told)] = ["shared mean", *share, shared_mean(frames["shares"]).key]
    told.loc[len(told)] = ["answers", *fall(frames["errors"], "d2-dpm", "rtn", LOWEST),
                           answers_or_pictures(frames).key]  # fmt: skip
    told.loc[len(told)] = ["rarely", *fall(frames["errors"], "qncd, I = 1"),
                           rarely(frames["errors"]).key]  # fmt: skip
    return told
