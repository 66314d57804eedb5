"""Making the embedded assets: the same seed makes the same weights and the same pairs."""

import gzip
import json
import random

import pytest
import torch
from safetensors.torch import load_file

from rlhf.config import PreferencesConfig, PretrainConfig
from rlhf.everyday import prompt_splits
from rlhf.models import load_policy
from rlhf.pretrain import CONTRAST_BATCH, preferences, pretrain, token_losses, write_contrasts


TINY = {"num_dialogs": 200, "listening_steps": 2, "vocab_size": 500, "n_embd": 24, "n_layer": 1, "n_head": 2}
TINY |= {"n_positions": 512}  # a small vocabulary makes long texts


@pytest.fixture(scope="module")
def made_twice(tmp_path_factory):
    return [pretrain(PretrainConfig(str(tmp_path_factory.mktemp(name)), **TINY)) for name in ("first", "again")]


def test_the_same_seed_makes_the_same_base_model(made_twice, tmp_path):
    first, again = (load_file(folder / "model.safetensors") for folder in made_twice)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = load_file(pretrain(PretrainConfig(str(tmp_path), seed=1, **TINY)) / "model.safetensors")
    assert any(first[name].shape != other[name].shape or not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.process
def test_pairs_are_made_again_to_the_byte_and_have_two_different_answers(tmp_path, monkeypatch):
    questions = prompt_splits()["reward"][:64]  # so few that 40 pairs take several turns
    monkeypatch.setattr("rlhf.pretrain.prompt_splits", lambda: {"reward": questions})
    files = [tmp_path / folder / "pairs.jsonl.gz" for folder in ("first", "again")]
    for file in files:
        file.parent.mkdir()
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


def test_a_twin_has_the_question_of_its_dialog_and_another_reaction():
    dialogs, twins = write_contrasts(random.Random(0))
    assert len(dialogs) == CONTRAST_BATCH and len(twins) > CONTRAST_BATCH / 4
    reactions = {dialog.split("\n")[0]: dialog.split("<eos>")[1] for dialog in dialogs}
    for twin in twins:
        question, reaction = twin.split("\n")[0], twin.split("<eos>")[1]
        assert reactions[question] != reaction
