"""The tokenizer's files in a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"
"""Token 0 of every tokenizer that Fallow trains; ends documents and generation."""

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def write_tokenizer(folder: Path, tokenizer_json: str) -> None:
    """Write tokenizer.json and what `transformers` wants beside it."""
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Take over what belongs to the tokenizer and to generation from another model's folder."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
