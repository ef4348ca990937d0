"""A model of about half a billion parameters with random weights, for timings on a GPU: they compute as fast as trained ones.

Shared by the sections ``local`` and ``training``. Its answers mean nothing and are never judged.
"""

from __future__ import annotations

from pathlib import Path

SEED = 42


def save_large_model(small_base: Path, folder: Path) -> Path:
    """Write a Qwen3 configuration of 28 layers with the small base model's tokenizer; returns the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

    tokenizer = AutoTokenizer.from_pretrained(small_base)
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, head_dim=128,
        num_key_value_heads=8, intermediate_size=3072, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
