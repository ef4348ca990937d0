"""A tiny BERT of random weights in a sentence-transformers folder, made from a configuration: no download, a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789:;.,-+_%"


def write_encoder(folder: Path, *, size: int = 384, seed: int = 0, pooling: dict[str, Any] | None = None) -> Path:
    """Write an encoder with one layer over single characters and a few words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "regime", "bull", "bear", "market", "crash", "volatility"]
    vocabulary = [*words, *ALPHABET, *(f"##{letter}" for letter in ALPHABET)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=size,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.4,  # random token vectors must differ enough to be told apart
    )
    BertModel(config).eval().save_pretrained(folder)
    steps = [("", "models.Transformer"), ("1_Pooling", "models.Pooling"), ("2_Normalize", "models.Normalize")]
    listed = [{"idx": n, "path": path, "type": f"sentence_transformers.{kind}"} for n, (path, kind) in enumerate(steps)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 96}))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    chosen = pooling or {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": size, **chosen}))
    return folder
