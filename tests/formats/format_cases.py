"""Formats under test, and hypothesis strategies for tensors and ranges."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dqlab.formats import Affine, Binary, Codebook, Float, Format, Log2, LogTau, Range
from dqlab.formats.affine import SUFFIXES

# Few examples each, because most properties run once per format; the same ones every time.
quick = settings(max_examples=10, deadline=None, derandomize=True)

AFFINE = [
    Affine(bits, variant)
    for variant in SUFFIXES
    for bits in (1, 3, 4, 8, 16)
    if (bits, variant) != (1, "sym_signed_narrow")
]
FLOATS = [
    Float(2, 1),
    Float(1, 2),
    Float(3, 0),
    Float(3, 2),
    Float(2, 3),
    Float(4, 3),
    Float(5, 2),
]
LOGS = [Log2(bits, signed) for bits in (1, 3, 8) for signed in (False, True)]
LOGS += [LogTau(3, 3), LogTau(4, 6), LogTau(8, 12)]
CODEBOOKS = [Codebook((-1, 0, 1)), Codebook((-2.5, -0.3, 0.0, 0.1, 1.7)), Codebook((-1, 1))]
FORMATS: list[Format] = [*AFFINE, *FLOATS, *LOGS, *CODEBOOKS, Binary()]
WITH_ZERO = [f for f in FORMATS if f not in (Codebook((-1, 1)), Binary())]


def covering(fmt: Format, x: torch.Tensor) -> Range:
    return fmt.params(x.min(), x.max())


@st.composite
def tensors(draw: st.DrawFn, max_side: int = 8) -> torch.Tensor:
    """Float32 tensors of 1 to 3 dimensions over many magnitudes, ties and zeros included."""
    shape = draw(hnp.array_shapes(max_dims=3, max_side=max_side))
    value = st.one_of(
        st.floats(-1e4, 1e4, width=32), st.integers(-20, 20).map(lambda i: i / 2), st.just(0.0)
    )
    return torch.from_numpy(draw(hnp.arrays("float32", shape, elements=value)))
