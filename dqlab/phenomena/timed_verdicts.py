"""What the measurements of 1.3 say: TDQ's claims on this network, and the question's answer."""

import pandas as pd

from dqlab.metrics import sqnr_per_step
from dqlab.phenomena.ledger import Claim, claims_frame, gain_db
from dqlab.phenomena.verdicts import Verdict


def of(powers: pd.DataFrame, name: str, weights: int, activations: int) -> pd.DataFrame:
    """The error powers of one setting."""
    chosen = (powers["weights"] == weights) & (powers["activations"] == activations)
    return powers[chosen & (powers["setting"] == name)]


def over_steps(powers: pd.DataFrame, names: dict[str, str], weights: int, activations: int):
    """SQNR per step of some settings, called by other names.

    Returns:
        Columns series, step, timestep, db.

    """
    parts = []
    for name, series in names.items():
        found = sqnr_per_step(of(powers, name, weights, activations))
        found = found.rename(columns={"t": "timestep", "sqnr_db": "db"})
        parts.append(found.assign(series=series, timestep=found["timestep"].astype(int)))
    return pd.concat(parts, ignore_index=True)


def drifts(table: pd.DataFrame) -> Verdict:
    """The phenomenon, from `time_table`: does time explain the range?"""
    follow, wide = (table["r"].abs() > 0.5).mean(), (table["R"] > 1.5).mean()
    explained = (table["between"] > table["within"]).mean()
    told = (
        f"{100 * follow:.0f} % of {len(table)} sites follow t (|r| > 0.5), {100 * wide:.0f} % "
        f"have R > 1.5, the largest R is {table['R'].max():.1f}; in {100 * explained:.0f} % steps "
        "differ more than samples do"
    )
    if follow >= 0.5 and wide >= 0.2 and explained >= 0.4:
        return Verdict("holds", f"{told}: time explains much of the range.")
    if follow >= 0.5:
        return Verdict("weaker", f"{told}: ranges follow time, but move little.")
    return Verdict("absent", f"{told}: in this network time explains little.")


def table_gain(gains: pd.DataFrame) -> Verdict:
    """The question, from `gain_table`: what a scale per step gains on the best static one."""
    gain = gains["table"] - gains["static"]
    drifting = gains["R"] > 2
    told = (
        f"At A4 every step's own best scale gains {gain.mean():.2f} dB on the best static one, on "
        f"average over {len(gains)} sites"
    )
    if drifting.any():
        told += f" ({gain[drifting].mean():.2f} dB over the {drifting.sum()} with R > 2)"
    told += (
        f"; the best static scale itself gains {(gains['static'] - gains['min-max']).mean():.1f}"
    )
    told += " dB on min-max"
    if gain.mean() < 1:
        return Verdict("little", f"{told}: most of the loss was min-max.")
    if gain.mean() <= 5:
        return Verdict("some", f"{told}.")
    return Verdict("much", f"{told}: one scale cannot serve these sites.")


def claims(frames: dict[str, pd.DataFrame]) -> dict[str, Claim]:
    """TDQ's claims, each with the margin it is judged by.

    Args:
        frames: gains, ablations, powers and losses of `dynamic_quantization.measure`.

    """
    gains, powers = frames["gains"], frames["powers"]
    found = _drift_claims(gains) | _site_claims(gains) | _shape_claims(frames["ablations"])
    pairs = {
        "W8A4, eps: TDQ beats one min-max scale": (8, "min-max", 1.0),
        "W8A4, eps: TDQ beats the best static scale": (8, "static", 0.1),
        "W4A4, eps: TDQ beats ranges measured at run time": (4, "run time", 0.1),
    }
    for says, (weights, name, full) in pairs.items():
        before, after = (of(powers, k, weights, 4) for k in (name, "network"))
        quoted = "FID 4.48 against 6.30 (W4A4, trained)" if name == "run time" else ""
        found[name] = Claim(says, quoted, *gain_db(before, after), "dB", full)
    found["steps"] = _share("steps at which TDQ beats one min-max scale (eps, W8A4)", "",
                            _better_steps(powers), 80.0)  # fmt: skip
    found["training"] = _training_claim(frames["losses"])
    return found


def _share(says: str, quoted: str, share: float, full: float) -> Claim:
    percent = 100 * float(share)
    return Claim(says, quoted, percent, percent, percent, "%", full, full / 2)


def _drift_claims(gains: pd.DataFrame) -> dict[str, Claim]:
    r = gains["r"].abs()
    return {
        "follow": _share("sites whose range follows t, |r| > 0.5", "62.1 % of layers",
                         (r > 0.5).mean(), 50.0),
        "strongly": _share("sites whose range follows t closely, |r| > 0.7", "38.8 % of layers",
                           (r > 0.7).mean(), 38.8),
        "wide": _share("sites whose range moves by more than half, R > 1.5", "",
                       (gains["R"] > 1.5).mean(), 20.0),
        "explained": _share("sites where steps differ more than samples", "time, not the sample",
                            (gains["between"] > gains["within"]).mean(), 40.0),
    }  # fmt: skip


def _mean(says: str, values: pd.Series, full: float) -> Claim:
    mean, half = float(values.mean()), float(1.96 * values.sem()) if len(values) > 1 else 0.0
    return Claim(says, "", mean, mean - half, mean + half, "dB", full)


def _site_claims(gains: pd.DataFrame) -> dict[str, Claim]:
    """At each site's own tensor, A4, judged on trajectories that set nothing."""
    gain, drifting = gains["network"] - gains["static"], gains["R"] > 2
    found = {
        "sites": _share("sites where TDQ is no worse than the best static scale (0.05 dB)",
                        "", (gain >= -0.05).mean(), 90.0),
        "gain": _mean("TDQ gains on the best static scale (tensor, A4, mean of sites)", gain, 0.2),
    }  # fmt: skip
    if drifting.any():
        found["drifting"] = _mean("the same where R > 2", gain[drifting], 0.6)
    found |= {
        "oracle": _share("sites where TDQ is within 0.2 dB of every step's own best", "",
                         (gains["network"] >= gains["table"] - 0.2).mean(), 90.0),
    }  # fmt: skip
    r = float(gain.corr(gains["R"])) if len(gains) > 2 and gains["R"].std() > 0 else 0.0
    found["decider"] = Claim("the gain grows with R (correlation over sites)", "", r, r, r, "",
                             0.5, 0.1)  # fmt: skip
    return found


def _shape_claims(table: pd.DataFrame) -> dict[str, Claim]:
    """How much further from the best scales other networks stay, and what unseen steps gain."""
    rows, found = table.set_index("shape"), {}
    for shape, says in (("1 layer", "one layer follows the best scales worse than four"),
                        ("2 layers", "two layers follow them worse than four"),
                        ("raw t", "a raw t is followed worse than its encoding")):  # fmt: skip
        more = 100 * float(rows["error"][shape] - rows["error"]["4 layers"])
        found[shape] = Claim(f"{says} (error of s, fitted steps)", "worse, no figure", more, more,
                             more, "% of s", 1.0, 0.1)  # fmt: skip
    gain = float(rows["seen_db"]["4 layers"] - rows["held_out_db"]["4 layers"])
    found["unseen"] = Claim("steps in between are served as well as fitted ones",
                            "a new step count needs no new fit", gain, gain, gain, "dB", -0.3,
                            -1.0)  # fmt: skip
    return found


def shapes(table: pd.DataFrame) -> Verdict:
    """What the encoding of t is good for, from `ablations`."""
    rows = table.set_index("shape")
    (wave, between), (raw, raw_between) = (
        (rows["seen_db"][k], rows["held_out_db"][k]) for k in ("4 layers", "raw t")
    )
    told = (
        f"Against every step's own best, the encoding loses {abs(wave):.2f} dB at fitted steps "
        f"and {between:.2f} dB in between; a raw t {raw:.2f} and {raw_between:.2f} dB"
    )
    if wave < raw and between <= raw_between:
        return Verdict("encoding", f"{told}: the encoding is the better in both places.")
    if wave < raw:
        return Verdict("trade", f"{told}: the encoding fits better, a raw t is the smoother.")
    return Verdict("raw", f"{told}: here the encoding does not help.")


def _better_steps(powers: pd.DataFrame) -> float:
    """Share of steps at which the network's SQNR is above min-max's, W8A4."""
    mine, theirs = (sqnr_per_step(of(powers, k, 8, 4))["sqnr_db"] for k in ("network", "min-max"))
    return float((mine.to_numpy() > theirs.to_numpy()).mean())


def _training_claim(losses: pd.DataFrame) -> Claim:
    """Final loss of the LSQ baseline less TDQ's, relative, paired over held-out samples."""
    wide = losses.pivot(index="sample", columns="setting", values="loss")
    base = wide["trained, static"]
    won = 100 * (base - wide["trained, network"]) / base.mean()
    mean, half = float(won.mean()), float(1.96 * won.sem())
    return Claim("W4A4, short training: TDQ's final loss is below LSQ's",
                 "FID 4.48 against 7.30 (CIFAR-10), 4.64 against 5.06 (churches)", mean,
                 mean - half, mean + half, "% of the loss", 1.0)  # fmt: skip


def trained_verdict(losses: pd.DataFrame) -> Verdict:
    """What both short runs came to."""
    means = losses.groupby("setting")["loss"].mean()
    before, lsq, tdq = (means[k] for k in ("before", "trained, static", "trained, network"))
    claim = _training_claim(losses)
    told = (
        f"Loss on held-out samples: {before:.4f} before, {lsq:.4f} with LSQ's static scales, "
        f"{tdq:.4f} with TDQ's ({claim.measured:+.1f} % [{claim.low:+.1f}, {claim.high:+.1f}])"
    )
    if claim.low > 0:
        return Verdict("lower", f"{told}: TDQ ends lower.")
    if claim.high < 0:
        return Verdict("higher", f"{told}: TDQ ends higher.")
    return Verdict("equal", f"{told}: too close to tell after so few updates.")


def room(ledger: pd.DataFrame) -> Verdict:
    """How far apart untrained ways of choosing scales are, at each pair of bits."""
    fitted = ledger[~ledger["setting"].str.startswith("trained")]
    spans = {
        f"W{w}A{a}": float(part["db"].max() - part["db"].min())
        for (w, a), part in fitted.groupby(["weights", "activations"], sort=False)
    }
    told = "All ways of choosing scales without training lie within " + ", ".join(
        f"{span:.1f} dB at {name}" for name, span in spans.items()
    )
    widest, narrowest = max(spans.values()), min(spans.values())
    if narrowest < 1 <= widest:
        return Verdict("few bits", f"{told}: only at few activation bits is there much to choose.")
    if narrowest >= 1:
        return Verdict("always", f"{told}: the choice always matters.")
    return Verdict("never", f"{told}: the choice hardly matters here.")


def pictures(ledger: pd.DataFrame) -> Verdict:
    """Whether paired pictures can rank ways of choosing scales, from a ledger with `pictures`."""
    kept, bits = float(ledger["garment"].max()), int(ledger["weights"].max())
    told = f"Whatever chooses the scales, at most {100 * kept:.0f} % of {ledger['pictures'].min()}"
    told += " pictures keep their garment"
    if kept < 0.5:
        return Verdict("lost", f"{told}: weights rounded to {bits} bits already paint another "
                       "picture, so paired errors rank nothing here and SQNR has to.")  # fmt: skip
    fitted = ledger[~ledger["setting"].str.startswith("trained")]
    groups = fitted.groupby(["weights", "activations"])
    if bool((groups["mse_low"].max() <= groups["mse_high"].min()).all()):
        return Verdict("equal", f"{told}; intervals of untrained paired errors overlap.")
    return Verdict("apart", f"{told}; paired errors tell some settings apart.")


def outcomes(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What came of every claim and of the question, from the other frames.

    Returns:
        Columns name, measured, low, high, outcome.

    """
    told = claims_frame(claims(frames))
    gain = float((frames["gains"]["table"] - frames["gains"]["static"]).mean())
    told.loc[len(told)] = ["question", gain, gain, gain, table_gain(frames["gains"]).key]
    return told
