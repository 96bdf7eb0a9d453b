"""The tables of the notebook 1.5-error-correction, and refusals in the words of the error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import pandas as pd

from dqlab.errors import DqlabError, InvalidInputError
from dqlab.metrics import bootstrap_median, median
from dqlab.phenomena.correction_claims import ETA_0, FIRST, errors_of, fall
from dqlab.show.bundle import Page
from dqlab.show.tables import table


def refusal(call: Callable[[], object]) -> str:
    """What a call that cannot be done says.

    Raises:
        InvalidInputError: if it can be done after all.

    """
    try:
        call()
    except DqlabError as error:
        return f"{type(error).__name__}: {error}"
    raise InvalidInputError("Nothing was refused here; show the result instead.")


def with_warning(call: Callable[[], object]) -> tuple[object, str]:
    """What a call gives, and the first warning it gave on the way; "" if it gave none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call()
    return found, str(caught[0].message) if caught else ""


def shapes_table(shapes: pd.DataFrame, words: str) -> Page:
    """Correlation of error and prediction, and how far both are from normal, over the steps."""
    rows = [
        (bits, *(_range(part[name]) for name in ("r", "skew_residual", "kurtosis_residual",
                                                 "kurtosis_error", "kurtosis_answer")))
        for bits, part in shapes.groupby("bits", sort=False)
    ]  # fmt: skip
    heads = (
        "bits", "R of error and prediction", "residual: skew", "residual: excess kurtosis",
        "error: excess kurtosis", "answer: excess kurtosis",
    )  # fmt: skip
    return table(words, heads, rows)


def _range(values: pd.Series) -> str:
    """Smallest, median and largest."""
    low, middle, high = (round(float(values.quantile(q)), 2) + 0 for q in (0, 0.5, 1))
    return f"{low:.2f} to {high:.2f}, median {middle:.2f}"


def ledger_table(ledger: pd.DataFrame) -> Page:
    """Method by method: SQNR, paired error, what still reads the same, computed cost."""
    heads = (
        "bits", "method", "SQNR [dB]", "paired squared error, median",
        "garment / colour / background kept", "extra calls a run", "kB, tables included",
        "10⁹ bit-operations a call",
    )  # fmt: skip
    rows = [_ledger_row(row) for row in ledger.to_dict("records")]
    words = (
        "The ledger: same seeds, same 8-bit exceptions, computed cost. A run has 20 calls; what "
        "corrects a run has no SQNR on given states."
    )
    return table(words, heads, rows)


def _ledger_row(row: Mapping) -> tuple[str, ...]:
    db = "not defined" if math.isnan(row["db"]) else (
        f"{row['db']:.1f} [{row['db_low']:.1f}, {row['db_high']:.1f}]"
    )  # fmt: skip
    kept = " / ".join(f"{100 * row[head]:.0f} %" for head in ("garment", "colour", "background"))
    return (
        row["bits"],
        row["method"],
        db,
        f"{row['mse']:.2e} [{row['mse_low']:.2e}, {row['mse_high']:.2e}]",
        kept,
        f"{row['calls']}",
        f"{row['kilobytes'] + row['table']:.1f}",
        f"{row['gigabitops']:.1f}",
    )


def errors_table(
    errors: pd.DataFrame, names: Mapping[str, str], words: str, bits: str = FIRST,
    sampler: str = ETA_0,
) -> Page:  # fmt: skip
    """Median paired error of some settings, and its fall against another, in per cent.

    `names`: {setting: the setting it is compared with, or ""}.
    """
    rows = []
    for name, over in names.items():
        mine = errors_of(errors, name, bits, sampler)
        low, high = bootstrap_median(mine)
        told = [f"{float(median(mine)):.2e} [{low:.2e}, {high:.2e}]"]
        told += [_percent(fall(errors, name, over, bits, sampler)), over] if over else ["", ""]
        rows.append((sampler, bits, name, *told))
    heads = ("sampler", "bits", "setting", "paired squared error, median", "falls by", "against")
    return table(words, heads, rows)


def _percent(change: tuple[float, float, float]) -> str:
    middle, low, high = (round(x) + 0 for x in change)
    return f"{middle:.0f} % [{low:.0f}, {high:.0f}]"


def samplers_table(errors: pd.DataFrame, words: str) -> Page:
    """Every sampler's settings in one table, against plain rounding under the same sampler."""
    rows = []
    for sampler in errors["sampler"].unique():
        mine = errors[(errors["sampler"] == sampler) & (errors["bits"] == FIRST)]
        for name in _corrections(mine):
            change = _percent(fall(errors, name, "rtn", FIRST, sampler))
            middle = float(median(errors_of(errors, name, FIRST, sampler)))
            rows.append((sampler, name, f"{middle:.2e}", "" if name == "rtn" else change))
    return table(
        words, ("sampler", "correction", "paired squared error, median", "falls by"), rows
    )


def _corrections(errors: pd.DataFrame) -> list[str]:
    wanted = "rtn", "ptqd", "ptqd, no variance", "d2-dpm", "tac-diffusion", "qncd, I = 10"
    there = set(errors["name"])
    return [name for name in wanted if name in there]


def softmax_table(softmax: pd.DataFrame) -> Page:
    """Softmax outputs alone in bits: SQNR before and after, with the gain's interval."""
    rows = [
        (
            f"{row['bits']}",
            row["granularity"],
            f"{row['before']:.1f}",
            f"{row['db']:.1f}",
            _gain(row),
        )
        for row in _rounded(softmax).to_dict("records")
    ]
    heads = ("softmax bits", "one constant per", "before [dB]", "after [dB]", "gain [dB]")
    words = "Softmax outputs in bits, all else in full precision; 95 % intervals over seeds."
    return table(words, heads, rows)


def _rounded(frame: pd.DataFrame) -> pd.DataFrame:
    """One decimal; zero has no sign, which would depend on nothing."""
    numbers = frame.select_dtypes("float").columns
    return frame.assign(**{name: frame[name].round(1) + 0.0 for name in numbers})


def gains_table(gains: pd.DataFrame, words: str) -> Page:
    """SQNR of predictions on held-out full-precision states, and gains."""
    rows = [
        (
            row["sampler"],
            row["bits"],
            row["name"],
            f"{row['db']:.1f}",
            _gain(row),
            row["over"],
        )
        for row in _rounded(gains).to_dict("records")
    ]
    heads = ("sampler", "bits", "setting", "SQNR [dB]", "gain [dB]", "over")
    return table(words, heads, rows)


def ablations_table(ablations: pd.DataFrame, words: str) -> Page:
    """Variants of a correction's tables: SQNR of predictions on held-out states, and gains."""
    rows = [
        (row["bits"], row["option"], f"{row['db']:.1f}", _gain(row))
        for row in _rounded(ablations).to_dict("records")
    ]
    return table(words, ("bits", "tables", "SQNR [dB]", "gain [dB]"), rows)


def misplaced_table(misplaced: pd.DataFrame, words: str) -> Page:
    """What tables of another setting lose against those of the right one."""
    rows = [
        (row["method"], row["option"], f"{row['gain']:.2f} [{row['low']:.2f}, {row['high']:.2f}]")
        for row in misplaced.to_dict("records")
    ]
    return table(words, ("tables of", "fitted at", "worse by [dB]"), rows)


def slopes_table(slopes: pd.DataFrame, words: str) -> Page:
    """A slope by its centre and by who is asked, mean over steps, in per cent."""
    rows = [
        (
            row["bits"],
            row["centre"],
            f"{row['runs']}, {row['count']} runs",
            f"{100 * row['k']:+.2f} % [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]",
            f"{100 * row['spread']:.2f} %",
        )
        for row in slopes.to_dict("records")
    ]
    heads = ("bits", "centred", "asked", "slope k, mean over steps", "one run's own slope, s.d.")
    return table(words, heads, rows)


def sets_table(sets: pd.DataFrame, room: pd.DataFrame, words: str) -> Page:
    """Sets of pictures: Frechet distance and pixel variance, and what a variance part changes."""
    changed = {row["name"]: row for row in room.to_dict("records")}
    rows = [
        (
            row["name"],
            f"{row['distance']:.3f}",
            _signed(changed, row, "distance"),
            f"{row['variance']:.3f}",
            _signed(changed, row, "variance"),
        )
        for row in sets.to_dict("records")
    ]
    heads = (
        "setting", "Fréchet distance to full precision's set", "of it by the variance part",
        "pixel variance over full precision's", "of it by the variance part",
    )  # fmt: skip
    return table(words, heads, rows)


def _signed(changed: Mapping[str, Mapping], row: Mapping, key: str) -> str:
    if row["name"] not in changed:
        return ""
    part = changed[row["name"]]
    return f"{part[key]:+.4f} [{part[f'{key}_low']:+.4f}, {part[f'{key}_high']:+.4f}]"


def attention_table(attention: pd.DataFrame, words: str) -> Page:
    """Softmax outputs in bits beside other tensors: SQNR before and after."""
    rows = [
        (
            row["others"],
            f"{row['samples']}",
            f"{row['before']:.1f}",
            f"{row['db']:.1f}",
            _gain(row),
        )
        for row in _rounded(attention).to_dict("records")
    ]
    heads = ("all else", "constants from runs", "before [dB]", "after [dB]", "gain [dB]")
    return table(words, heads, rows)


def _gain(row: Mapping) -> str:
    return f"{row['gain']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"
