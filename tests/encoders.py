"""Text encoders with random weights, small enough to be made in a test."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

WORDS = ["a", "red", "blue", "green", "circle", "square", "star", "and", "left", "right", "of", "the", "two"]
SPECIAL = ["<pad>", "<unk>", "<bos>", "<sep>"]


def tiny_gemma(folder: Path, seed: int = 0) -> Path:
    """A Gemma 2 of 24 channels whose tokens are words."""
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=len(WORDS) + len(SPECIAL),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    return _save(Gemma2Model(config), folder, "<bos> $A")


def tiny_qwen3(folder: Path, seed: int = 0) -> Path:
    """A Qwen 3 of 24 channels whose tokens are words, with nothing before them."""
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(WORDS) + len(SPECIAL),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=3,
    )
    return _save(Qwen3Model(config), folder, "$A")


def tiny_bert(folder: Path, seed: int = 0) -> Path:
    """A BERT of 24 channels whose tokens are words."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS) + len(SPECIAL),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return _save(BertModel(config), folder, "<bos> $A <sep>")


def _save(model: torch.nn.Module, folder: Path, template: str) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(word, numbers[word]) for word in SPECIAL if word in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
        model.save_pretrained(folder)
    return folder
