"""PPO on a language model in the plainest code there is, and the tests that hold the trainer to it.

`plain_update` is all of one update, to be read from top to bottom: one response at a time, Transformers' own forward
pass, no batches, no padding. `rlhf/ppo/` computes the same for whole batches, in bounded memory, on several processes;
the tests below compare the two: every metric agrees to 2e-6, every weight to 2e-5.

Shapes: a prompt of P tokens, its response of L tokens, N response tokens in all, V tokens in the vocabulary.
"""

import pytest
import torch
from worlds import Listener, flat, fours, quick, undecided, updates_of, weights


pytestmark = pytest.mark.usefixtures("one_thread")


def read(model, head, prompt, response, temperature):
    """What a model says of one response: log-probability, entropy and value at each of its tokens, all (L,)."""
    output = model(torch.tensor([prompt + response]), output_hidden_states=True)
    # Position t decides on token t + 1: the first token of the response is chosen at the last one of the prompt.
    choices = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
    distribution = torch.log_softmax(output.logits[0, choices] / temperature, dim=-1)  # (L, V)
    logprobs = distribution.gather(1, torch.tensor(response).unsqueeze(1)).squeeze(1)  # log pi(y_t)
    entropies = -(distribution.exp() * distribution).sum(dim=-1)
    values = head(output.hidden_states[-1][0, choices]).squeeze(1)  # V_t, a linear function of the last state
    return logprobs, entropies, values


def plain_update(
    model, reference, head, optimizer, rows, scores, *,
    epochs, temperature, kl_coef=0.05, gamma=1.0, lam=0.95, clip=0.2, clip_value=0.2, vf_coef=0.1, max_grad_norm=1.0,
):  # fmt: skip
    """Train a policy and its value head on responses that it has sampled, each a pair (prompt, response) of token ids.

    Returns the means over tokens of what was seen in each epoch, and over responses of what was seen before the first.
    """
    # 1. Before anything is learned: what the policy, the reference and the critic say of each response.
    with torch.no_grad():
        before = [read(model, head, *row, temperature) for row in rows]
        ref_logprobs = [read(reference, head, *row, temperature)[0] for row in rows]
    old_logprobs, old_values = torch.cat([b[0] for b in before]), torch.cat([b[2] for b in before])  # (N,)

    # 2. Rewards: a price for every token that the reference finds less likely, and the score at the last token.
    #        r_t = -kl_coef (log pi(y_t) - log pi_ref(y_t)) + [t = L] score
    log_ratios = [b[0] - ref for b, ref in zip(before, ref_logprobs, strict=True)]
    rewards = [-kl_coef * log_ratio for log_ratio in log_ratios]
    for reward, score in zip(rewards, scores, strict=True):
        reward[-1] += score

    # 3. Advantages, from the last token to the first, as nothing follows the last:
    #        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lam A_{t+1},    R_t = A_t + V_t
    advantages = []
    for reward, (_, _, values) in zip(rewards, before, strict=True):
        advantage, next_value, backwards = 0.0, 0.0, []
        for r, v in zip(reward.flip(0), values.flip(0), strict=True):
            advantage = r + gamma * next_value - v + gamma * lam * advantage
            next_value = v
            backwards.append(advantage)
        advantages += reversed(backwards)
    advantages = torch.stack(advantages)  # (N,)
    returns = advantages + old_values
    advantages = (advantages - advantages.mean()) / (advantages.var() + 1e-8).sqrt()  # whitened over all tokens

    # 4. Learn: the same responses several times, while the policy moves away from the one that sampled them.
    trained = [*model.parameters(), *head.parameters()]
    history = []
    for _ in range(epochs):
        parts = [read(model, head, *row, temperature) for row in rows]
        logprobs, entropies, values = (torch.cat(column) for column in zip(*parts, strict=True))  # (N,)
        # The policy: rho_t = pi(y_t) / pi_old(y_t); once it is off by more than the clip, more of it pays nothing.
        ratio = torch.exp(logprobs - old_logprobs)
        unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
        pg_loss = torch.maximum(unclipped, clipped).mean()
        # The critic: squared error against the returns, clipped about the old values in the same way.
        near = old_values + (values - old_values).clamp(-clip_value, clip_value)
        vf_loss = 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2).mean()
        optimizer.zero_grad()
        (pg_loss + vf_coef * vf_loss).backward()
        torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
        optimizer.step()
        history.append({
            "policy/approxkl_avg": 0.5 * ((logprobs - old_logprobs) ** 2).mean().item(),
            "policy/clipfrac_avg": (clipped > unclipped).float().mean().item(),
            "policy/entropy_avg": entropies.mean().item(),
            "val/ratio": ratio.mean().item(),
            "loss/policy_avg": pg_loss.item(),
            "loss/value_avg": vf_loss.item(),
        })  # fmt: skip
    return history, {
        "objective/kl": sum(log_ratio.sum().item() for log_ratio in log_ratios) / len(rows),
        "objective/entropy": -old_logprobs.sum().item() / len(rows),
        "objective/rlhf_reward": sum(reward.sum().item() for reward in rewards) / len(rows),
        "val/mean": old_values.mean().item(),
        "returns/mean": returns.mean().item(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The trainer against it


def plain_learner(learning_rate):
    """The policy that `quick` trains, a value head that starts at zero, and the trainer's optimizer of both."""
    model = undecided()
    head = torch.nn.Linear(model.config.n_embd, 1)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    trained = [*model.parameters(), *head.parameters()]
    return model, head, torch.optim.AdamW(trained, lr=learning_rate, eps=1e-5, weight_decay=0.0)


def assert_metrics_agree(line, history, before):
    """A line of the trainer's metrics: means over the epochs, and what was seen before them."""
    for name in history[0]:
        expected = sum(seen[name] for seen in history) / len(history)
        assert line[name] == pytest.approx(expected, abs=2e-6), name
    for name, expected in before.items():
        assert line[name] == pytest.approx(expected, abs=2e-6, rel=1e-6), name


def test_an_update_and_its_metrics_equal_a_plain_loop_over_rows_without_pads(tmp_path):
    asked = Listener()
    trainer = quick(
        tmp_path, reward_funcs=asked, num_ppo_epochs=3, total_episodes=16, temperature=0.7, learning_rate=1e-2,
        value_learning_rate=1e-2,
    )  # fmt: skip
    trainer.train()
    rows = list(zip(trainer.processing_class(asked.prompts)["input_ids"], asked.ids, strict=True))
    assert len({len(ids) for ids in asked.ids}) > 2  # otherwise a mean over rows would do
    model, head, optimizer = plain_learner(learning_rate=1e-2)
    scores = [fours(ids) for ids in asked.ids]
    history, before = plain_update(
        model, undecided(), head, optimizer, rows, scores, epochs=3, temperature=0.7
    )  # fmt: skip
    line = updates_of(trainer)[0]
    assert_metrics_agree(line, history, before)
    assert line["policy/approxkl_avg"] > 1e-4
    assert torch.allclose(weights(trainer), torch.cat([flat(model), flat(head)]), atol=2e-5)


def test_a_second_update_with_another_reference_and_a_critic_that_has_learned_equals_it_too(tmp_path):
    asked = Listener()
    trainer = quick(
        tmp_path, reward_funcs=asked, ref_model=undecided(seed=7), num_ppo_epochs=2, total_episodes=32, kl_coef=0.3,
        gamma=0.9, learning_rate=1e-2, value_learning_rate=1e-2,
    )  # fmt: skip
    trainer.train()
    rows = list(zip(trainer.processing_class(asked.prompts)["input_ids"], asked.ids, strict=True))
    model, head, optimizer = plain_learner(learning_rate=1e-2)
    for update, line in enumerate(updates_of(trainer)):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - update / 2)
        own = slice(16 * update, 16 * update + 16)
        scores = [fours(ids) for ids in asked.ids[own]]
        history, before = plain_update(
            model, undecided(seed=7), head, optimizer, rows[own], scores, epochs=2, temperature=1.0, kl_coef=0.3,
            gamma=0.9,
        )  # fmt: skip
        assert_metrics_agree(line, history, before)
        assert line["objective/kl"] > 0.01
    assert abs(line["val/mean"]) > 0.01  # the critic of the second update has something to say
    assert torch.allclose(weights(trainer), torch.cat([flat(model), flat(head)]), atol=2e-5)


def test_the_first_pass_has_ratio_one_and_moves_nothing_off(tmp_path):
    trainer = quick(tmp_path, num_ppo_epochs=1)
    trainer.train()
    for line in updates_of(trainer):
        assert line["val/ratio"] == pytest.approx(1.0, abs=1e-5)
        assert line["policy/approxkl_avg"] < 1e-9
        assert line["policy/clipfrac_avg"] == 0
        assert line["policy/entropy_avg"] > 0 and line["objective/entropy"] > 0
    assert updates_of(trainer)[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
