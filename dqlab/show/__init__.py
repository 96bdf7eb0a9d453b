"""One visual language for all notebooks: figures, explorers, questions, exercises.

Inputs are tensors, arrays and tidy frames; nothing here computes anything about a model. Every
figure function returns a `Picture`, whose title, text alternative and `facts` come from the data.
"""

from dqlab.show.ask import Question
from dqlab.show.bundle import Live, Page, Picture
from dqlab.show.combs import comb
from dqlab.show.curves import db_over_steps, error_curves, range_ribbon
from dqlab.show.exercise import Check, exercise, verify_check
from dqlab.show.explorer import Control, Explorer
from dqlab.show.maps import bits_map, layer_step_map
from dqlab.show.marks import badge, mark, marker
from dqlab.show.panel import Canvas
from dqlab.show.roles import ROLES, role, style
from dqlab.show.source import source
from dqlab.show.strips import film_strip, image_grid

__all__ = [
    "ROLES",
    "Canvas",
    "Check",
    "Control",
    "Explorer",
    "Live",
    "Page",
    "Picture",
    "Question",
    "badge",
    "bits_map",
    "comb",
    "db_over_steps",
    "error_curves",
    "exercise",
    "film_strip",
    "image_grid",
    "layer_step_map",
    "mark",
    "marker",
    "range_ribbon",
    "role",
    "source",
    "style",
    "verify_check",
]
