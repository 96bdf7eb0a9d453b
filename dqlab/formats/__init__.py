"""Number formats: frozen values that turn tensors into integer codes and back."""

from dqlab.formats.affine import Affine
from dqlab.formats.base import Format, Range, lsq_grad_scale
from dqlab.formats.binary import Binary
from dqlab.formats.codebook import Codebook
from dqlab.formats.float import Float
from dqlab.formats.log2 import Log2
from dqlab.formats.logtau import LogTau
from dqlab.formats.names import parse

__all__ = [
    "Affine",
    "Binary",
    "Codebook",
    "Float",
    "Format",
    "Log2",
    "LogTau",
    "Range",
    "lsq_grad_scale",
    "parse",
]
