"""Quantization methods: one class per paper, composed into recipes, run by `quantize`."""

from dqlab.methods.correction import Correction, Step
from dqlab.methods.method import Method, Paper
from dqlab.methods.recipe import Recipe, recipe
from dqlab.methods.record import describe
from dqlab.methods.restore import load
from dqlab.methods.run import quantize

__all__ = [
    "Correction",
    "Method",
    "Paper",
    "Recipe",
    "Step",
    "describe",
    "load",
    "quantize",
    "recipe",
]
