"""The palette, under three simulated colour visions (CIE 1976 differences), and contrast."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from dqlab.errors import UnknownNameError
from dqlab.show.roles import (
    BACKGROUNDS,
    INK,
    PAPER,
    PLOTLY_LAYOUT,
    ROLES,
    STYLE,
    assign_roles,
    contrast,
    luminance,
    readable_ink,
    role,
)

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency" (2009), matrices for severity 1.0, applied to linear RGB.
SIMULATIONS = {
    "protan": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deutan": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritan": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
# sRGB (IEC 61966-2-1) to XYZ under D65.
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear_rgb(colour: str) -> np.ndarray:
    """Linear RGB in [0, 1] of a colour."""
    srgb = np.array(to_rgb(colour))
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of linear RGB."""
    ratio = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(axis=1)
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def delta_e(a: str, b: str, simulation: str | None = None) -> float:
    """CIE76 difference of two colours, as seen by the named kind of colour vision."""
    matrix = np.eye(3) if simulation is None else SIMULATIONS[simulation]
    seen = [lab(matrix @ linear_rgb(colour)) for colour in (a, b)]
    return float(np.linalg.norm(seen[0] - seen[1]))


GRAPHICS = 3.0  # WCAG 2.1, 1.4.11: graphical objects
TEXT = 4.5  # WCAG 2.1, 1.4.3: text


@pytest.mark.parametrize("vision", [None, *SIMULATIONS])
@pytest.mark.parametrize("pair", list(itertools.combinations(ROLES, 2)), ids="-".join)
def test_any_two_roles_differ_for_everyone(pair, vision):
    a, b = (ROLES[name].colour for name in pair)
    assert delta_e(a, b, vision) >= 15


def test_simulations_keep_white_and_confuse_red_with_green():
    assert all(delta_e("white", "white", s) == 0 for s in SIMULATIONS)
    # The published matrices' rows sum to 1, so that neutral colours stay as they are.
    assert all(abs(m.sum(axis=1) - 1).max() < 1e-5 for m in SIMULATIONS.values())
    assert delta_e("#CC4444", "#558800", "deutan") < delta_e("#CC4444", "#558800") / 2


def test_looks_differ_without_colour():
    looks = list(ROLES.values())
    assert len({str(r.line) for r in looks}) == len({r.dash for r in looks}) == len(looks)
    assert len({(r.marker, r.hollow) for r in looks}) == len(looks)
    assert ROLES["quoted"].hollow


@pytest.mark.parametrize("name", [n for n in ROLES if n != "full_precision"])
@pytest.mark.parametrize("theme", BACKGROUNDS)
def test_marks_stand_out_in_both_themes(name, theme):
    assert contrast(ROLES[name].colour, BACKGROUNDS[theme]) >= GRAPHICS


def test_no_single_ink_serves_both_themes_hence_the_plate():
    # The best common contrast is the square root of that between the two backgrounds.
    assert contrast(*BACKGROUNDS.values()) ** 0.5 < TEXT
    assert contrast(INK, PAPER) >= TEXT
    assert contrast(INK, BACKGROUNDS["light"]) >= TEXT
    assert contrast(PAPER, BACKGROUNDS["dark"]) >= TEXT


def test_contrast_at_its_known_ends():
    assert contrast("black", "white") == pytest.approx(21)
    assert luminance("white") == pytest.approx(1)
    assert readable_ink("black") == PAPER
    assert readable_ink("yellow") == INK


def test_fonts_are_at_least_12_px_and_grounds_transparent():
    sizes = [v for k, v in STYLE.items() if k.endswith("size") and "marker" not in k]
    assert min(sizes) >= 12
    assert PLOTLY_LAYOUT["font"]["size"] >= 12
    assert PLOTLY_LAYOUT["paper_bgcolor"].endswith(",0)")
    assert STYLE["figure.facecolor"] == "none"


def test_roles_are_assigned_by_name_then_in_order():
    found = assign_roles(["full_precision", "W4A4", "QNCD"], {"QNCD": "method"})
    assert [found[k].name for k in found] == ["full_precision", "rtn", "method"]


def test_unknown_and_too_many_roles_are_refused():
    with pytest.raises(UnknownNameError, match=r"no role 'fp'.*full_precision"):
        role("fp")
    with pytest.raises(UnknownNameError, match="7 labels"):
        assign_roles([f"m{i}" for i in range(7)])
