"""What an update may not depend on: how it is cut up, the order of its rows, and whatever is not a token."""

import math

import pytest
import torch
from worlds import (
    EOS,
    SIZE,
    UNTIMED,
    classifier,
    quick,
    rearrange,
    replace,
    tokenizer_of,
    undecided,
    updates_of,
    weights,
    weights_after,
)

from rlhf.models.packed import PackedGroups


pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def expected_weights(one_thread, tmp_path_factory):
    """Weights after two updates, cut in no way."""
    return weights_after(quick(tmp_path_factory.mktemp("whole"), total_episodes=32, num_mini_batches=2))


@pytest.mark.parametrize("tokens", [1, 20, 60])
def test_weights_do_not_depend_on_the_tokens_of_a_micro_batch(tokens, expected_weights, tmp_path, monkeypatch):
    replace(monkeypatch, "MICRO_BATCH_TOKENS", {"cpu": tokens, "cuda": tokens})
    found = weights_after(quick(tmp_path, total_episodes=32, num_mini_batches=2))
    assert torch.allclose(found, expected_weights, atol=2e-6)


@pytest.mark.parametrize("per_device", [1, 2, 8])
def test_weights_do_not_depend_on_the_split_into_accumulation_steps(per_device, expected_weights, tmp_path):
    trainer = quick(
        tmp_path, per_device_train_batch_size=per_device, gradient_accumulation_steps=16 // per_device,
        total_episodes=32, num_mini_batches=2,
    )  # fmt: skip
    assert torch.allclose(weights_after(trainer), expected_weights, atol=2e-6)


@pytest.mark.parametrize("entries", [1, 5 * SIZE])
def test_weights_do_not_depend_on_how_the_vocabulary_projection_is_cut(
    entries, expected_weights, tmp_path, monkeypatch
):
    replace(monkeypatch, "LOGITS_AT_ONCE", entries)
    found = weights_after(quick(tmp_path, total_episodes=32, num_mini_batches=2))
    assert torch.allclose(found, expected_weights, atol=2e-6)


@pytest.mark.parametrize("tokens", [1280, 60])
@pytest.mark.parametrize("value_head", ["shared", "separate"])
def test_a_prompt_is_read_once_for_all_its_answers_with_the_same_weights(value_head, tokens, tmp_path, monkeypatch):
    replace(monkeypatch, "MICRO_BATCH_TOKENS", {"cpu": tokens, "cuda": tokens})
    settings = {"num_generations": 4, "num_mini_batches": 2, "value_head": value_head, "reward_funcs": classifier()}
    read, groups = [], PackedGroups.__init__

    def note(self, rows, *rest):
        read.append(len(rows))
        groups(self, rows, *rest)

    monkeypatch.setattr(PackedGroups, "__init__", note)
    together = quick(tmp_path, total_episodes=32, **settings)
    together.train()
    assert max(read) >= 4
    monkeypatch.setattr("rlhf.models.packed._share_prompts", lambda *_: False)
    apart = quick(tmp_path, total_episodes=32, **settings)
    apart.train()
    assert torch.allclose(weights(together), weights(apart), atol=5e-6)
    for line, other in zip(updates_of(together), updates_of(apart), strict=True):
        for name in line:
            assert name.startswith(UNTIMED) or line[name] == pytest.approx(other[name], abs=1e-5, rel=1e-4), name


@pytest.mark.parametrize("value_head", ["shared", "separate"])
def test_recomputing_activations_gives_the_same_weights(value_head, tmp_path):
    plain, recomputed = (
        weights_after(
            quick(tmp_path / str(wanted), gradient_checkpointing=wanted, total_episodes=32, value_head=value_head)
        )
        for wanted in (False, True)
    )
    assert torch.allclose(plain, recomputed, atol=1e-6)


def test_dropout_of_the_model_is_off_in_both_phases(tmp_path):
    model = undecided()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    trainer = quick(tmp_path, model.train(), num_ppo_epochs=1, gradient_checkpointing=True)
    trainer.train()
    assert all(line["val/ratio"] == pytest.approx(1.0, abs=1e-5) for line in updates_of(trainer))


def test_the_order_of_the_rows_does_not_matter(tmp_path, monkeypatch):
    # All rows answer one prompt, so that the responses can change places.
    settings = {"train_dataset": ("<bos>",), "total_episodes": 16}
    one = weights_after(quick(tmp_path / "one", **settings))

    def backwards(generation):
        for name in ("responses", "mask", "logprobs", "ended", "hidden"):
            setattr(generation, name, getattr(generation, name).flip(0))
        return generation

    rearrange(monkeypatch, backwards)
    other = weights_after(quick(tmp_path / "other", **settings))
    assert torch.allclose(one, other, atol=2e-6)


def test_columns_of_pads_change_neither_weights_nor_metrics(tmp_path, monkeypatch):
    plain = quick(tmp_path / "plain")
    plain.train()

    def padded(generation):
        for name, garbage in (("responses", 9), ("mask", False), ("logprobs", -50.0), ("hidden", 1e3)):
            tensor = getattr(generation, name)
            pads = torch.full_like(tensor[:, :1], garbage).repeat(1, 3, *[1] * (tensor.ndim - 2))
            setattr(generation, name, torch.cat([tensor, pads], dim=1))
        return generation

    rearrange(monkeypatch, padded)
    other = quick(tmp_path / "padded")
    other.train()
    assert torch.allclose(weights(plain), weights(other), atol=1e-6)
    for one, two in zip(updates_of(plain), updates_of(other), strict=True):
        assert two["objective/entropy"] >= 0 and two["policy/entropy_avg"] >= 0
        for name in one:
            if not name.startswith(UNTIMED):
                assert two[name] == pytest.approx(one[name], abs=1e-4), name


def test_a_pad_token_that_is_the_end_token_changes_nothing(tmp_path):
    shared = tokenizer_of(SIZE)
    shared.pad_token = shared.eos_token
    assert shared.pad_token_id == EOS
    apart = quick(tmp_path / "apart")
    together = quick(tmp_path / "together", processing_class=shared)
    before = apart.model.lm_head.weight[EOS].detach().clone()
    assert torch.equal(weights_after(apart), weights_after(together))
    assert sum(line["val/num_eos_tokens"] for line in updates_of(together)) > 0
    assert not torch.equal(together.model.lm_head.weight[EOS], before)


def test_the_end_token_is_an_action_that_is_learnt(tmp_path):
    """Nothing but the end token is ever worth anything, and it is the pad token too."""
    tokenizer = tokenizer_of(SIZE)
    tokenizer.pad_token = tokenizer.eos_token
    trainer = quick(
        tmp_path, score=lambda ids: float(ids[-1] == EOS), processing_class=tokenizer, total_episodes=16 * 15,
        learning_rate=1e-2,
    )  # fmt: skip
    trainer.train()
    first, *_, last = updates_of(trainer)
    assert first["val/num_eos_tokens"] <= 10
    assert last["val/num_eos_tokens"] >= 15
    assert last["completions/mean_length"] < first["completions/mean_length"]


def test_mixed_precision_runs_on_the_cpu(tmp_path):
    trainer = quick(tmp_path, bf16=True, num_ppo_epochs=2)
    trainer.train()
    for line in updates_of(trainer):
        assert all(math.isfinite(value) for value in line.values())
        assert line["val/ratio"] == pytest.approx(1.0, abs=0.1)
