"""Making the embedded assets: the same seed makes the same weights and the same pairs."""

import gzip
import json
import random

import pytest
import torch
from safetensors.torch import load_file

from rlhf.config import PreferencesConfig, PretrainConfig
from rlhf.models import load_policy
from rlhf.pretrain import ANSWERED_ONCE, ANSWERED_TWICE, preferences, pretrain, token_losses, write_contrasts


TINY = {"num_dialogs": 200, "listening_steps": 2, "vocab_size": 500, "n_embd": 24, "n_layer": 1, "n_head": 2}


@pytest.fixture(scope="module")
def made_twice(tmp_path_factory):
    return [pretrain(PretrainConfig(str(tmp_path_factory.mktemp(name)), **TINY)) for name in ("first", "again")]


def test_the_same_seed_makes_the_same_base_model(made_twice, tmp_path):
    first, again = (load_file(folder / "model.safetensors") for folder in made_twice)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = load_file(pretrain(PretrainConfig(str(tmp_path), seed=1, **TINY)) / "model.safetensors")
    assert any(first[name].shape != other[name].shape or not torch.equal(first[name], other[name]) for name in first)


def test_pairs_are_made_again_to_the_byte_and_have_two_different_answers(tmp_path):
    files = [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"]
    for file in files:
        preferences(PreferencesConfig(output_file=str(file), num_pairs=40))
    assert files[0].read_bytes() == files[1].read_bytes()
    pairs = [json.loads(line) for line in gzip.open(files[0])]
    assert len(pairs) == 40
    assert all(pair["chosen"].strip() and pair["chosen"] != pair["rejected"] for pair in pairs)


def test_reactions_are_told_from_the_text_by_the_first_end_token(made_twice):
    model, tokenizer = load_policy(str(made_twice[0]))
    rows = tokenizer(["Hi?\nYes.<eos>Thank you!<eos>", "Hi?\nNo, not at all.<eos>"])["input_ids"]
    _, text, reaction = token_losses(model, rows)
    assert tokenizer.decode(torch.tensor(rows[0])[1:][reaction[0][: len(rows[0]) - 1]]) == "Thank you!<eos>"
    assert not reaction[1].any()
    assert (text | reaction).sum().item() == sum(map(len, rows)) - 2


def test_a_listening_step_holds_fitting_and_unfitting_answers_to_the_same_questions():
    dialogs = write_contrasts(random.Random(0))
    assert len(dialogs) == ANSWERED_ONCE + 2 * ANSWERED_TWICE
    questions = [dialog.split("\n")[0] for dialog in dialogs[ANSWERED_ONCE:]]
    assert questions[::2] == questions[1::2]
    reactions = {dialog.split("<eos>")[1] for dialog in dialogs[ANSWERED_ONCE::2]}
    assert len(reactions) == 1
    assert reactions.isdisjoint(dialog.split("<eos>")[1] for dialog in dialogs[ANSWERED_ONCE + 1 :: 2])
