"""PPO: formulas by hand, exact optima on small problems, invariances, and resuming to the bit."""

import copy
import itertools
import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf.config import BadInput, PPOConfig
from rlhf.ppo import Diverged, PPOTrainer, compute_gae, compute_rewards, policy_losses, value_losses, whiten


def test_gae_by_hand():
    values, rewards = torch.tensor([[0.5, 0.4, 0.2]]), torch.tensor([[0.0, 0.0, 1.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = compute_gae(rewards, values, mask, 1.0, 0.95)
    assert torch.allclose(advantages, torch.tensor([[0.432, 0.56, 0.8]]), atol=1e-6)
    assert torch.allclose(returns, torch.tensor([[0.932, 0.96, 1.0]]), atol=1e-6)
    assert torch.allclose(compute_gae(rewards, values, mask, 1.0, 1.0)[0], 1.0 - values)


@pytest.mark.parametrize("garbage", [float("nan"), 1e9])
def test_what_lies_in_the_pads_changes_nothing(garbage):
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    values, rewards = torch.randn(2, 4), torch.randn(2, 4)
    clean = compute_gae(rewards, values, mask, 0.9, 0.8)
    dirty = compute_gae(rewards.masked_fill(~mask, garbage), values.masked_fill(~mask, garbage), mask, 0.9, 0.8)
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one, other)
    white = whiten(values.masked_fill(~mask, garbage), mask)
    assert torch.allclose(white[mask].mean(), torch.tensor(0.0), atol=1e-6) and (white[~mask] == 0).all()
    scores, logprobs = torch.tensor([2.0, -1.0]), torch.randn(2, 4).masked_fill(~mask, garbage)
    total, non_score = compute_rewards(scores, logprobs, torch.zeros(2, 4), mask, 0.1)
    expected = torch.tensor([[0.0, 0.0, 2.0, 0.0], [-1.0, 0.0, 0.0, 0.0]])
    assert torch.allclose(total - non_score, expected, atol=1e-6)
    assert torch.isfinite(total).all()


def test_clipped_losses_by_hand():
    old = torch.zeros(4)
    new = torch.tensor([1.5, 0.5, 1.5, 0.5]).log()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss, ratio, clipped = policy_losses(new, old, advantages, 0.2)
    assert torch.allclose(loss, torch.tensor([-1.2, -0.5, 1.5, 0.8]))
    assert clipped.tolist() == [True, False, False, True]
    assert torch.allclose(ratio, torch.tensor([1.5, 0.5, 1.5, 0.5]))
    value, clipped = value_losses(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([2.0]), 0.2)
    assert value.item() == pytest.approx(0.5 * 1.8**2) and clipped.item()


# ---------------------------------------------------------------------------------------------------------------------
# Small worlds whose optimum is known: the policy that maximises E[score] - kl_coef * KL is the reference, tilted by
# exp(score / kl_coef).


def tokenizer_of(size):
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"t{i}": i for i in range(3, size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def small_model(size, seed=0, scale=0.5):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=size, n_positions=8, n_embd=32, n_layer=1, n_head=2, initializer_range=scale, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def trainer_for(model, score, **settings):
    settings = {
        "learning_rate": 3e-3, "per_device_train_batch_size": 256, "total_episodes": 256 * 150, "kl_coef": 0.5,
        "temperature": 1.0, "num_sample_generations": 0, "max_length": 8, **settings,
    }  # fmt: skip
    return PPOTrainer(
        model,
        PPOConfig(**settings),
        tokenizer_of(model.config.vocab_size),
        reward_funcs=lambda prompts, completions, completion_ids: [score(tuple(ids)) for ids in completion_ids],
        train_dataset=["<bos>"],
    )


def test_a_one_token_bandit_reaches_the_boltzmann_tilt():
    table = torch.randn(16, generator=torch.Generator().manual_seed(3))
    model = small_model(16)
    with torch.no_grad():
        reference = torch.softmax(model(torch.tensor([[1]])).logits[0, -1], dim=-1)
    best = torch.softmax(reference.log() + table / 0.5, dim=-1)
    trainer = trainer_for(model, lambda ids: table[ids[0]].item(), response_length=1)
    trainer.train()
    with torch.no_grad():
        found = torch.softmax(model(torch.tensor([[1]])).logits[0, -1], dim=-1)
    assert 0.5 * (reference - best).abs().sum() > 0.3  # there was something to learn
    assert 0.5 * (found - best).abs().sum() < 0.03


def test_a_tree_with_end_tokens_reaches_the_tilt_over_sequences():
    """Four tokens, one of them the end, up to three long: catches mistakes with ends, masks and reward positions."""
    model, beta = small_model(6, scale=0.4), 0.3
    generator = torch.Generator().manual_seed(1)
    letters = (2, 3, 4, 5)
    sequences = [
        ids
        for length in (1, 2, 3)
        for ids in itertools.product(letters, repeat=length)
        if 2 not in ids[:-1] and (length == 3 or ids[-1] == 2)
    ]
    score = {ids: torch.randn((), generator=generator).item() for ids in sequences}
    # The letters a reward is never given for are ruled out by their price.
    other = -2.0

    def logprob(policy, ids):
        with torch.no_grad():
            logits = policy(torch.tensor([[1, *ids[:-1]]])).logits[0]
        return sum(torch.log_softmax(row, dim=-1)[token].item() for row, token in zip(logits, ids, strict=True))

    reference = {ids: logprob(model, ids) for ids in sequences}
    trainer = trainer_for(
        model, lambda ids: score.get(ids, other), response_length=3, kl_coef=beta, per_device_train_batch_size=512,
        total_episodes=512 * 150,
    )  # fmt: skip
    trainer.train()
    found = {ids: logprob(model, ids) for ids in sequences}
    mass = sum(map(math.exp, found.values()))
    tilt = {ids: math.exp(reference[ids] + score[ids] / beta) for ids in sequences}
    total = sum(tilt.values())
    distance = 0.5 * sum(abs(math.exp(found[ids]) / mass - tilt[ids] / total) for ids in sequences)
    start = sum(map(math.exp, reference.values()))
    before = 0.5 * sum(abs(math.exp(reference[ids]) / start - tilt[ids] / total) for ids in sequences)
    assert before > 0.3
    assert distance < 0.06


# ---------------------------------------------------------------------------------------------------------------------
# Invariances and life cycle


def quick(model, updates=4, **settings):
    settings = {"per_device_train_batch_size": 16, "total_episodes": 16 * updates, "response_length": 5} | settings
    return trainer_for(model, lambda ids: float(ids.count(4)) - 0.1 * len(ids), **settings)


def test_the_first_pass_has_ratio_one_and_every_optimizer_step_happens():
    trainer = quick(small_model(12), updates=3, num_ppo_epochs=1, num_mini_batches=1)
    history = trainer.train().log_history
    assert all(line["val/ratio"] == pytest.approx(1.0, abs=1e-5) for line in history)
    assert all(line["policy/approxkl_avg"] < 1e-9 and line["policy/clipfrac_avg"] == 0 for line in history)
    assert history[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    trainer = quick(small_model(12), updates=3, num_ppo_epochs=2, num_mini_batches=4)
    trainer.train()
    steps = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {3 * 2 * 4}


def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(monkeypatch):
    weights = []
    for tokens in (8, 40, 10_000):
        monkeypatch.setattr("rlhf.ppo.MICRO_BATCH_TOKENS", tokens)
        model = small_model(12)
        quick(model, updates=2).train()
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.allclose(weights[0], weights[1], atol=1e-5) and torch.allclose(weights[1], weights[2], atol=1e-5)


def test_resuming_equals_not_having_stopped_to_the_bit(tmp_path):
    straight = quick(small_model(12), updates=4)
    straight.train()
    first = quick(small_model(12), updates=4)
    first.args.total_episodes = 64
    stop = first.control

    class StopAfterTwo:
        def __getattr__(self, name):
            def event(args, state, control, **kwargs):
                stop.should_training_stop = state.global_step == 2 and name == "on_step_end"

            return event

    first.callbacks.append(StopAfterTwo())
    first.train()
    first.save_checkpoint(tmp_path / "step-000002")
    second = quick(small_model(12, seed=9), updates=4)
    second.ref_model = copy.deepcopy(straight.ref_model)
    second.train(resume_from_checkpoint=tmp_path / "step-000002")
    for one, other in zip(straight.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [line["objective/scores"] for line in straight.state.log_history[2:]] == [
        line["objective/scores"] for line in second.state.log_history
    ]


def test_a_damaged_checkpoint_is_refused(tmp_path):
    trainer = quick(small_model(12), updates=1)
    trainer.train()
    folder = trainer.save_checkpoint(tmp_path / "step-000001")
    path = folder / "policy.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match="damaged"):
        trainer.train(resume_from_checkpoint=folder)
    with pytest.raises(BadInput, match="not a checkpoint"):
        trainer.train(resume_from_checkpoint=tmp_path)


def test_bad_rewards_and_prompts_are_named():
    model = small_model(12)
    with pytest.raises(Diverged, match="score was not finite"):
        trainer_for(model, lambda ids: float("nan"), response_length=3).train()
    trainer = quick(model)
    trainer.reward_funcs = lambda **columns: [1.0]
    with pytest.raises(BadInput, match="1 scores for 16"):
        trainer.train()
    with pytest.raises(BadInput, match="leaves no room"):
        quick(model, response_length=8)
    with pytest.raises(BadInput, match="either a reward_model or reward_funcs"):
        PPOTrainer(model, PPOConfig(), tokenizer_of(12), train_dataset=["<bos>"])
