"""The formulas of PPO by hand, and what lies in the pads, which may change nothing."""

import math

import pytest
import torch
from worlds import mask_of, random

from rlhf.ppo.algorithm import adapt_kl_coef, compute_gae, compute_rewards, policy_losses, value_losses, whiten
from rlhf.ppo.logprobs import token_logprobs
from rlhf.ppo.metrics import explained_variance


GARBAGE = pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e9])

pytestmark = pytest.mark.usefixtures("one_thread")


# -------------------------------------------------------------------------------------------------------------------
# Advantages


def three_tokens(lam, rewards=(0.0, 0.0, 1.0), values=(0.5, 0.4, 0.2), gamma=1.0):
    mask = torch.ones(1, len(values), dtype=torch.bool)
    advantages, returns = compute_gae(torch.tensor([rewards]), torch.tensor([values]), mask, gamma, lam)
    return advantages[0].tolist(), returns[0].tolist()


def test_gae_by_hand():
    advantages, returns = three_tokens(lam=0.95)
    assert advantages == pytest.approx([0.432, 0.56, 0.8], abs=1e-6)
    assert returns == pytest.approx([0.932, 0.96, 1.0], abs=1e-6)


def test_lambda_one_is_the_return_minus_the_value():
    advantages, returns = three_tokens(lam=1.0)
    assert advantages == pytest.approx([0.5, 0.6, 0.8], abs=1e-6)
    assert returns == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)


def test_lambda_zero_is_the_one_step_error():
    advantages, _ = three_tokens(lam=0.0)
    assert advantages == pytest.approx([-0.1, -0.2, 0.8], abs=1e-6)
    advantages, _ = three_tokens(lam=0.0, gamma=0.5)
    assert advantages == pytest.approx([0.5 * 0.4 - 0.5, 0.5 * 0.2 - 0.4, 0.8], abs=1e-6)


@pytest.mark.parametrize(("value_of_pad", "wrong"), [(0.0, [0.386875, 0.5125, 0.75]), (-1.0, [0.34175, 0.465, 0.7])])
def test_a_score_at_the_first_pad_would_give_other_advantages(value_of_pad, wrong):
    """TRL's trainer lets the score arrive one step after the last token, from a state whose value is made up."""
    late, _ = three_tokens(lam=0.95, rewards=(0.0, 0.0, 0.0, 1.0), values=(0.5, 0.4, 0.2, value_of_pad))
    assert late[:3] == pytest.approx(wrong, abs=1e-6)
    ours, _ = three_tokens(lam=0.95)
    assert ours == pytest.approx([0.432, 0.56, 0.8], abs=1e-6)


def gae_in_words(rewards, values, gamma, lam):
    """The definition, for one response: A_t is the sum over k of (gamma lam)^k delta_{t+k}."""
    following = [*values[1:], 0.0][: len(values)]  # none if there is no token
    deltas = [r + gamma * after - v for r, after, v in zip(rewards, following, values, strict=True)]
    return [sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_gae_of_a_ragged_batch_is_that_of_each_row_alone(gamma, lam):
    lengths = [9, 1, 5, 0, 2, 9, 1]
    mask = mask_of(*lengths, width=9)
    rewards, values = (random(7, 9, seed=seed, dtype=torch.float64) for seed in (1, 2))
    advantages, returns = compute_gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(lengths):
        alone = gae_in_words(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(alone, abs=1e-12)
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()
    assert torch.allclose(returns[mask], (advantages + values)[mask])


def test_a_response_of_one_token_has_what_it_earned_minus_its_value():
    advantages, returns = compute_gae(torch.tensor([[2.0]]), torch.tensor([[0.5]]), mask_of(1, width=1), 0.9, 0.3)
    assert advantages.item() == pytest.approx(1.5) and returns.item() == pytest.approx(2.0)


@GARBAGE
def test_what_lies_in_the_pads_changes_no_advantage(garbage):
    mask = mask_of(3, 1, 0, width=4)
    rewards, values = random(3, 4, seed=1), random(3, 4, seed=2)
    clean = compute_gae(rewards, values, mask, 0.9, 0.8)
    dirty = compute_gae(rewards.masked_fill(~mask, garbage), values.masked_fill(~mask, garbage), mask, 0.9, 0.8)
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one, other)


# -------------------------------------------------------------------------------------------------------------------
# Whitening and rewards


def test_whitening_by_hand():
    values, mask = torch.tensor([[1.0, 2.0, 50.0], [6.0, 50.0, 50.0]]), mask_of(2, 1, width=3)
    # Mean 3 and, divided by n - 1 as TRL does, variance 7.
    expected = torch.tensor([[-2.0, -1.0, 0.0], [3.0, 0.0, 0.0]]) / math.sqrt(7)
    assert torch.allclose(whiten(values, mask), expected, atol=1e-6)


def test_whitening_without_a_shift_keeps_the_mean():
    values, mask = torch.tensor([[1.0, 2.0, 50.0], [6.0, 50.0, 50.0]]), mask_of(2, 1, width=3)
    white = whiten(values, mask, shift_mean=False)
    assert white[mask].tolist() == pytest.approx([3 - 2 / 7**0.5, 3 - 1 / 7**0.5, 3 + 3 / 7**0.5], abs=1e-5)
    assert (white[~mask] == 0).all()


@GARBAGE
@pytest.mark.parametrize("shift_mean", [True, False])
def test_what_lies_in_the_pads_changes_nothing_in_whitening(garbage, shift_mean):
    mask, values = mask_of(3, 1, width=4), random(2, 4)
    clean, dirty = (
        whiten(values.masked_fill(~mask, pad), mask, shift_mean=shift_mean) for pad in (0.0, garbage)
    )  # fmt: skip
    assert torch.equal(clean, dirty)


def test_whitening_one_entry_or_equal_entries_stays_finite():
    assert whiten(torch.tensor([[7.0]]), mask_of(1, width=1)).item() == 0
    assert (whiten(torch.full((2, 2), 7.0), mask_of(2, 2, width=2)) == 0).all()
    assert (whiten(torch.full((2, 2), 7.0), mask_of(0, 0, width=2)) == 0).all()


def test_rewards_by_hand():
    mask = mask_of(3, 1, width=3)
    earned = torch.tensor([[0.0, 0.0, 2.0], [-1.0, 0.0, 0.0]])
    logprobs = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, 0.0, 0.0]])
    reference = torch.tensor([[-1.5, -1.0, -0.5], [-1.0, 0.0, 0.0]])
    rewards, kl_part = compute_rewards(earned, logprobs, reference, mask, 0.1)
    assert torch.allclose(kl_part, torch.tensor([[-0.05, 0.1, 0.0], [0.2, 0.0, 0.0]]), atol=1e-6)
    assert torch.allclose(rewards, torch.tensor([[-0.05, 0.1, 2.0], [-0.8, 0.0, 0.0]]), atol=1e-6)


@GARBAGE
def test_what_lies_in_the_pads_changes_no_reward(garbage):
    mask = mask_of(3, 1, width=4)
    given = [random(2, 4, seed=seed) for seed in (1, 2, 3)]
    clean = compute_rewards(*given, mask, 0.1)
    dirty = compute_rewards(*(tensor.masked_fill(~mask, garbage) for tensor in given), mask, 0.1)
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one, other) and (one[~mask] == 0).all()


# -------------------------------------------------------------------------------------------------------------------
# Losses, log-probabilities and the small formulas around them


RATIOS = torch.tensor([1.5, 0.5, 1.5, 0.5, 1.1, 0.9])
SIGNS = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0])


def test_the_policy_loss_is_clipped_where_moving_on_would_pay():
    loss, ratio, clipped = policy_losses(RATIOS.log(), torch.zeros(6), SIGNS, 0.2)
    assert loss.tolist() == pytest.approx([-1.2, -0.5, 1.5, 0.8, -1.1, 0.9])
    assert clipped.tolist() == [True, False, False, True, False, False]
    assert torch.allclose(ratio, RATIOS)


def test_a_higher_upper_bound_leaves_the_lower_one_alone():
    loss, _, clipped = policy_losses(RATIOS.log(), torch.zeros(6), SIGNS, 0.2, 0.28)
    assert loss.tolist() == pytest.approx([-1.28, -0.5, 1.5, 0.8, -1.1, 0.9])
    assert clipped.tolist() == [True, False, False, True, False, False]


def test_the_dual_clip_bounds_the_loss_of_bad_tokens_only():
    ratios, advantages = torch.tensor([5.0, 5.0, 2.0]), torch.tensor([-2.0, 2.0, -2.0])
    loss, _, _ = policy_losses(ratios.log(), torch.zeros(3), advantages, 0.2, dual_clip=3.0)
    assert loss.tolist() == pytest.approx([6.0, -2.4, 4.0], rel=1e-5)


def test_clipped_tokens_have_no_gradient_and_others_that_of_the_ratio():
    logprobs = RATIOS.log().requires_grad_()
    policy_losses(logprobs, torch.zeros(6), SIGNS, 0.2)[0].sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([0.0, -0.5, 1.5, 0.0, -1.1, 0.9])
    bad = torch.tensor([5.0]).log().requires_grad_()
    policy_losses(bad, torch.zeros(1), -torch.ones(1), 0.2, dual_clip=3.0)[0].sum().backward()
    assert bad.grad.item() == 0


def test_a_log_ratio_beyond_all_bounds_stays_finite():
    loss, ratio, _ = policy_losses(torch.tensor([0.0]), torch.tensor([-500.0]), torch.tensor([-1.0]), 0.2)
    assert torch.isfinite(loss).all() and torch.isfinite(ratio).all()


def test_the_value_loss_by_hand():
    values, old = torch.tensor([1.0, 0.1, -1.0, 1.0]), torch.zeros(4)
    loss, clipped = value_losses(values, old, torch.tensor([2.0, 2.0, 2.0, 0.0]), 0.2)
    # Moved past the clip towards the return; within it; away from the return; past a return that lies behind.
    assert loss.tolist() == pytest.approx([0.5 * 1.8**2, 0.5 * 1.9**2, 0.5 * 3.0**2, 0.5 * 1.0**2])
    assert clipped.tolist() == [True, False, False, False]


def test_explained_variance_of_a_perfect_and_of_an_ignorant_critic():
    returns = torch.tensor([1.0, 4.0, -2.0])
    assert explained_variance(returns, returns).item() == 1
    assert explained_variance(torch.full((3,), 9.0), returns).item() == pytest.approx(0, abs=1e-6)
    assert explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).item() == pytest.approx(1 - 1 / 2.25)
    assert math.isfinite(explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0])).item())


@pytest.mark.parametrize(("kl", "error"), [(60.0, 0.2), (6.6, 0.1), (6.0, 0.0), (5.4, -0.1), (0.1, -0.2)])
def test_the_kl_coefficient_follows_its_closed_form(kl, error):
    coefficient, episodes, horizon = 0.05, 64, 10_000
    for _ in range(100):
        coefficient = adapt_kl_coef(coefficient, kl, 6.0, episodes, horizon)
    assert coefficient == pytest.approx(0.05 * (1 + error * episodes / horizon) ** 100, rel=1e-9)


def plain_logprobs(logits, targets):
    distribution = torch.log_softmax(logits.float(), dim=-1)
    return distribution.gather(1, targets.unsqueeze(1)).squeeze(1), -(distribution.exp() * distribution).sum(dim=-1)


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_log_probabilities_and_entropies_are_those_of_log_softmax(entropy_gradient):
    logits, targets = 4 * random(50, 33), torch.arange(50) % 33
    found = token_logprobs(logits, targets, entropy_gradient=entropy_gradient)
    for one, other in zip(found, plain_logprobs(logits, targets), strict=True):
        assert torch.allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_their_gradient_is_autograds(entropy_gradient):
    targets, weights = torch.arange(50) % 33, random(2, 50, seed=5)
    gradients = []
    for function in (token_logprobs, plain_logprobs):
        logits = (4 * random(50, 33)).requires_grad_()
        keywords = {"entropy_gradient": entropy_gradient} if function is token_logprobs else {}
        logprobs, entropy = function(logits, targets, **keywords)
        loss = (weights[0] * logprobs).sum()
        if entropy_gradient:
            loss = loss + (weights[1] * entropy).sum()
        loss.backward()
        gradients.append(logits.grad)
    assert torch.allclose(*gradients, atol=1e-5)


def test_the_entropy_is_outside_the_graph_unless_asked_for():
    logprobs, entropy = token_logprobs(random(2, 5).requires_grad_(), torch.tensor([0, 1]))
    assert logprobs.requires_grad and not entropy.requires_grad


def test_large_logits_keep_their_differences():
    logits, targets = torch.tensor([[1e4, 1e4 - 1.0, -1e4]]), torch.tensor([1])
    logprobs, entropy = token_logprobs(logits, targets)
    expected = plain_logprobs(logits, targets)
    assert logprobs.item() == pytest.approx(expected[0].item(), abs=2e-3)
    assert entropy.item() == pytest.approx(expected[1].item(), abs=2e-3)
