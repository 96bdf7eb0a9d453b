"""Captions of tinted garments, their tokenizer, and which caption belongs to which seed.

The vocabulary is closed (26 words), so the tokenizer is trained here, offline, on every caption
there is, and every word becomes one token.
"""

import itertools
import json

import torch

from dqlab.models.fashion import GARMENTS
from dqlab.models.tint import BACKGROUNDS, COLOURS, Attributes

MAX_LENGTH = 16
"""Tokens per caption, start and end included."""
_END = "<|endoftext|>"


def every_attribute() -> Attributes:
    """All 320 combinations of garment, colour and background."""
    ranges = (range(len(GARMENTS)), range(len(COLOURS)), range(len(BACKGROUNDS)))
    table = torch.tensor(list(itertools.product(*ranges)))
    return Attributes(*table.unbind(1))


def attributes_of(seeds: list[int]) -> Attributes:
    """What the picture of each seed is asked to show: drawn once, from the seed alone."""
    sizes = (len(GARMENTS), len(COLOURS), len(BACKGROUNDS))
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(int(seed))
        rows.append([int(torch.randint(n, (), generator=generator)) for n in sizes])
    return Attributes(*torch.tensor(rows).reshape(-1, 3).unbind(1))


def caption_number(shown: Attributes) -> torch.Tensor:
    """Position of each picture's caption in `every_attribute()`, int64 `[N]`."""
    return (shown.garment * len(COLOURS) + shown.colour) * len(BACKGROUNDS) + shown.background


def build_tokenizer():
    """A `CLIPTokenizer` for the caption vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=1_000,
        special_tokens=["<|startoftext|>", _END],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(every_attribute().captions(), trainer)
    return CLIPTokenizer(**_learned(trained), model_max_length=MAX_LENGTH)


def _learned(trained) -> dict:
    """Vocabulary and merges of a trained byte-pair tokenizer."""
    model = json.loads(trained.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def tokenize(tokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids, int64 `[N, 16]`, padded as Stable Diffusion pads its prompts."""
    return tokenizer(
        captions,
        padding="max_length",
        max_length=MAX_LENGTH,
        truncation=True,
        return_tensors="pt",
    ).input_ids
