"""Advantages without a critic: the formulas, their optimum, and TRL 1.16's RLOOTrainer and GRPOTrainer beside them."""

import pytest
import torch
import trl
from datasets import Dataset
from test_ppo_exact import bandit, play, tree
from test_ppo_parity import say
from transformers import GPT2LMHeadModel
from worlds import BOS, EOS, fours, mask_of, quick, random, replace, tokenizer_of, trainer_for, undecided, updates_of

from rlhf.config import BadInput
from rlhf.ppo import algorithm
from rlhf.ppo.algorithm import compute_gae, compute_grpo, compute_reinforce_plus_plus, compute_rloo
from rlhf.ppo.metrics import update_metrics


pytestmark = pytest.mark.usefixtures("one_thread")

REWARDS, MASK = random(6, 4, seed=1), mask_of(1, 4, 2, 3, 4, 2, width=4)
"""Two prompts with three answers each."""


def returns():
    return [REWARDS[row][MASK[row]].sum().item() for row in range(6)]


def test_leave_one_out_compares_an_answer_with_the_mean_of_its_siblings():
    advantages = compute_rloo(REWARDS.where(MASK, torch.nan), MASK, 3)
    for row, own in enumerate(returns()):
        siblings = [value for other, value in enumerate(returns()) if other // 3 == row // 3 and other != row]
        expected = torch.where(MASK[row], own - sum(siblings) / 2, 0.0)
        torch.testing.assert_close(advantages[row], expected)


def test_grpo_standardises_an_answer_within_its_group():
    advantages = compute_grpo(REWARDS.where(MASK, torch.nan), MASK, 3)
    for row, own in enumerate(returns()):
        group = torch.tensor(returns()[row // 3 * 3 : row // 3 * 3 + 3])
        expected = torch.where(MASK[row], (own - group.mean()) / (group.std() + 1e-4), 0.0)
        torch.testing.assert_close(advantages[row], expected)


def test_answers_that_are_all_worth_the_same_teach_nothing():
    rewards, mask = torch.full((4, 2), 0.5), torch.ones(4, 2, dtype=torch.bool)
    assert not compute_rloo(rewards, mask, 4).any() and not compute_grpo(rewards, mask, 4).any()


def test_reinforce_plus_plus_credits_a_token_with_what_comes_after_it():
    advantages = compute_reinforce_plus_plus(REWARDS, MASK, 0.9)
    for row in range(6):
        rewards = REWARDS[row][MASK[row]].tolist()
        for t in range(len(rewards)):
            to_go = sum(0.9**later * reward for later, reward in enumerate(rewards[t:]))
            assert advantages[row, t].item() == pytest.approx(to_go, abs=1e-6)
    assert not advantages[~MASK].any()
    assert torch.equal(advantages, compute_gae(REWARDS, torch.zeros(6, 4), MASK, 0.9, 1.0)[0])


@pytest.mark.parametrize("estimator", ["rloo", "grpo", "reinforce++"])
def test_a_run_without_a_critic_learns_saves_and_resumes(tmp_path, estimator):
    settings = {"advantage_estimator": estimator, "num_generations": 4, "save_strategy": "steps", "save_steps": 2}
    whole = quick(tmp_path / "whole", **settings)
    whole.train()
    scores = [line["objective/scores"] for line in updates_of(whole)]
    assert whole.value_model is None and not any(name.startswith("val/mean") for name in updates_of(whole)[0])
    assert not (tmp_path / "whole" / "checkpoint-2" / "value_model").exists()
    assert scores[-1] > scores[0]
    resumed = quick(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_several_answers_per_prompt_are_needed(tmp_path, estimator):
    with pytest.raises(BadInput, match="num_generations"):
        quick(tmp_path, advantage_estimator=estimator)


def test_a_value_model_that_nothing_would_use_is_refused(tmp_path):
    with pytest.raises(BadInput, match="has a critic"):
        quick(tmp_path, advantage_estimator="reinforce++", value_model=undecided())


# ---------------------------------------------------------------------------------------------------------------------
# The optimum, as in test_ppo_exact.py


@pytest.mark.process
def test_leave_one_out_reaches_the_tilt_of_a_bandit_and_of_a_tree(tmp_path):
    for world in (bandit(), tree()):
        outcome = play(world, tmp_path, advantage_estimator="rloo", num_generations=world.batch)
        assert outcome.before > 0.3
        assert outcome.after < 0.05
        assert 0 <= outcome.regret < 0.02
        assert outcome.value_gap < 0.02


# ---------------------------------------------------------------------------------------------------------------------
# TRL 1.16 on the same answers


# Prompts of one length: TRL gives GPT-2 no positions for prompts with pads on their left.
ANSWERS = {
    "<bos> t3": [(4, 5, 6), (4, EOS), (7, 7, EOS), (4, 4, 4)],
    "t5 t4": [(3, EOS), (6, 4, 8), (5, EOS), (8, 8, 8)],
}


def ids_of(prompt):
    return [BOS if word == "<bos>" else int(word[1:]) for word in prompt.split()]


def reference_model():
    """Another model than the policy, so that there is a KL."""
    return undecided(seed=3)


def in_trl(kind, folder, **settings):
    """TRL's trainer on `ANSWERS`: its advantages and rows, and the gradient of its first step."""
    args = getattr(trl, f"{kind}Config")(
        str(folder), num_generations=4, per_device_train_batch_size=8, max_completion_length=3, max_steps=1,
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
        disable_tqdm=True, max_grad_norm=1e9, temperature=1.0, **settings,
    )  # fmt: skip
    undecided().save_pretrained(folder / "policy")  # TRL loads the reference from where the policy came from
    model = GPT2LMHeadModel.from_pretrained(folder / "policy")
    dataset = Dataset.from_dict({"prompt": list(ANSWERS)})
    reward = lambda completion_ids, **_: [fours(tuple(ids)) for ids in completion_ids]  # noqa: E731
    trainer = getattr(trl, f"{kind}Trainer")(
        model, reward, args, train_dataset=dataset, processing_class=tokenizer_of(12)
    )
    if trainer.ref_model is not None:
        trainer.ref_model.load_state_dict(reference_model().state_dict())
    answers, seen, compute_loss = answers_in_turn(), {}, trainer._compute_loss

    def answer(prompt_ids, *_):
        responses = [next(answers[tuple(ids)]) for ids in prompt_ids]
        return (responses, None) if kind == "GRPO" else responses

    def note(model, inputs):
        seen.update(inputs)
        return compute_loss(model, inputs)

    trainer._generate_single_turn, trainer._compute_loss = answer, note
    trainer.create_optimizer_and_scheduler(1)
    trainer.optimizer.register_step_pre_hook(lambda *_: seen.update(gradient=gradient_of(model)))
    trainer.train()
    return seen


def here(folder, monkeypatch, **settings):
    """This project's trainer on the same answers."""
    answers, seen = answers_in_turn(), {}

    class Said(dict):
        def __getitem__(self, query):
            return list(next(answers[query]))

    replace(monkeypatch, "generate", say(Said()))

    def note(trainer, rollout, *rest):
        seen.update(rollout=rollout)
        return update_metrics(trainer, rollout, *rest)

    monkeypatch.setattr(algorithm, "update_metrics", note)
    trainer = trainer_for(
        undecided(), fours, folder, train_dataset=list(ANSWERS), ref_model=reference_model(), num_generations=4,
        per_device_train_batch_size=8, total_episodes=8, response_length=3, num_ppo_epochs=1, max_grad_norm=1e9,
        **settings,
    )  # fmt: skip
    trainer.optimizer.register_step_pre_hook(lambda *_: seen.update(gradient=gradient_of(trainer.model)))
    trainer.train()
    return seen


def answers_in_turn():
    return {tuple(ids_of(prompt)): iter(answers) for prompt, answers in ANSWERS.items()}


def gradient_of(model):
    return torch.cat([parameter.grad.flatten().clone() for parameter in model.parameters()])


def by_answer(ids, mask, advantages):
    """(response, its advantage) in one order, whatever that of the trainer's prompts was."""
    responses = [tuple(row[inside.bool()].tolist()) for row, inside in zip(ids, mask, strict=True)]
    return sorted(zip(responses, advantages.tolist(), strict=True))


def assert_same_advantages(ours, trls):
    rollout = ours["rollout"]
    own = by_answer(rollout.generation.responses, rollout.mask, rollout.advantages[:, 0])
    other = by_answer(trls["completion_ids"], trls["completion_mask"], trls["advantages"])
    assert [response for response, _ in own] == [response for response, _ in other]
    torch.testing.assert_close(torch.tensor([a for _, a in own]), torch.tensor([a for _, a in other]))


def test_leave_one_out_has_trls_advantages_and_the_direction_of_its_gradient(tmp_path, monkeypatch):
    trls = in_trl("RLOO", tmp_path, beta=0.3)
    ours = here(tmp_path, monkeypatch, advantage_estimator="rloo", kl_coef=0.3)
    assert_same_advantages(ours, trls)
    # TRL averages over responses, this project over tokens: at the first step a factor, the mean length.
    mean_length = ours["rollout"].mask.sum() / 8
    torch.testing.assert_close(ours["gradient"] * mean_length, trls["gradient"], rtol=1e-4, atol=1e-6)


def test_grpo_has_trls_advantages_and_gradient_where_there_is_no_kl(tmp_path, monkeypatch):
    trls = in_trl("GRPO", tmp_path, beta=0.0, loss_type="dapo")
    ours = here(tmp_path, monkeypatch, advantage_estimator="grpo", kl_coef=0.0)
    assert_same_advantages(ours, trls)
    torch.testing.assert_close(ours["gradient"], trls["gradient"], rtol=1e-4, atol=1e-6)


def test_with_a_kl_grpo_differs_as_documented(tmp_path, monkeypatch):
    """TRL's advantages are those of the score alone, and its KL a term of the loss; here it is in the rewards."""
    trls = in_trl("GRPO", tmp_path, beta=0.3, loss_type="dapo")
    ours = here(tmp_path, monkeypatch, advantage_estimator="grpo", kl_coef=0.3)["rollout"]
    own = ours.scores + ours.non_score_rewards.sum(dim=1)
    own = own.view(2, 4)
    expected = ((own - own.mean(dim=1, keepdim=True)) / (own.std(dim=1, keepdim=True) + 1e-4)).flatten()
    torch.testing.assert_close(ours.advantages[:, 0], expected)
    of_scores = dict(by_answer(trls["completion_ids"], trls["completion_mask"], trls["advantages"]))
    here_too = dict(by_answer(ours.generation.responses, ours.mask, ours.advantages[:, 0]))
    assert max(abs(of_scores[response] - here_too[response]) for response in of_scores) > 0.01
