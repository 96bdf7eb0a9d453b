"""Quantized layers and attention, how a model is wrapped and walked, site policies."""

from dqlab.layers.context import StepContext
from dqlab.layers.explore import Anatomy, explore
from dqlab.layers.inject import ChannelOutliers, ShortcutImbalance, TimestepDrift
from dqlab.layers.policy import Policy, Rule, common_policy
from dqlab.layers.quantizer import RUN_TIME, Quantizer
from dqlab.layers.smooth import smooth_layer
from dqlab.layers.split import SplitQuantizer, concatenations, split_layer
from dqlab.layers.table import AnswerTable, answer_from
from dqlab.layers.wrap import QuantizedAttention, QuantizedLayer, quantizers

__all__ = [
    "RUN_TIME",
    "Anatomy",
    "AnswerTable",
    "ChannelOutliers",
    "Policy",
    "QuantizedAttention",
    "QuantizedLayer",
    "Quantizer",
    "Rule",
    "ShortcutImbalance",
    "SplitQuantizer",
    "StepContext",
    "TimestepDrift",
    "answer_from",
    "common_policy",
    "concatenations",
    "explore",
    "quantizers",
    "smooth_layer",
    "split_layer",
]
