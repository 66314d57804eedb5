"""Small models and helpers that several tests share. Nothing here needs a network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(ROOT))


@pytest.fixture
def rlhf(tmp_path):
    """Run `python -m rlhf ...` as a person would, in an empty folder; returns the finished process."""

    def run(*words, timeout=300):
        return subprocess.run(
            [sys.executable, "-m", "rlhf", *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def base():
    """The embedded base model and its tokenizer."""
    from rlhf.models import load_policy

    return load_policy("everyday")


@pytest.fixture
def tiny_gpt2():
    """A two-layer GPT-2 with 40 tokens and random weights large enough that its choices differ."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_positions=48, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()
