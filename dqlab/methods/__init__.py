"""Quantization methods: one class per paper, composed into recipes, run by `quantize`."""

from dqlab.methods.method import Method, Paper
from dqlab.methods.recipe import Recipe, recipe
from dqlab.methods.record import describe
from dqlab.methods.restore import load
from dqlab.methods.run import quantize

__all__ = ["Method", "Paper", "Recipe", "describe", "load", "quantize", "recipe"]
