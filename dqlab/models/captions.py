"""Captions of tinted garments, their tokenizers, and which caption belongs to which seed.

The vocabulary is closed (26 words), so the tokenizers are built here, offline, from every caption
there is, and every word becomes one token.
"""

import itertools
import json
from collections.abc import Sequence

import torch

from dqlab.models.fashion import GARMENTS
from dqlab.models.tint import BACKGROUNDS, COLOURS, Attributes

MAX_LENGTH = 16
"""Tokens per caption, start and end included."""
NO_CAPTION = len(GARMENTS) * len(COLOURS) * len(BACKGROUNDS)
"""The caption number that stands for none: one past the last of `every_attribute()`."""
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


def build_t5_tokenizer(more: Sequence[str] = ()):
    """A `T5Tokenizer` for the caption vocabulary: one piece per word.

    `more` words come last, so that the others keep their token ids.
    """
    from transformers import T5Tokenizer

    words = sorted({word for text in every_attribute().captions() for word in text.split()})
    words = (f"\N{LOWER ONE EIGHTH BLOCK}{word}" for word in [*words, *more])
    pieces = ["<pad>", "</s>", "<unk>", *words]
    # A unigram model never has to choose between pieces here, so that all may weigh the same.
    scored = [(piece, 0.0) for piece in pieces]
    return T5Tokenizer(vocab=scored, extra_ids=0, model_max_length=MAX_LENGTH)


def tokenize(tokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids, int64 `[N, 16]`, padded as Stable Diffusion pads its prompts."""
    return encode(tokenizer, captions).input_ids


def encode(tokenizer, captions: list[str]):
    """Token ids and attention mask, int64 `[N, 16]` each."""
    return tokenizer(
        captions,
        padding="max_length",
        max_length=MAX_LENGTH,
        truncation=True,
        return_tensors="pt",
    )
