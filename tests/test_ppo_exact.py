"""PPO against arithmetic: its formulas by hand, and small worlds in which the best policy is known exactly.

The policy that maximises E[score] - beta KL(policy || reference) is the reference tilted by exp(score / beta), and
its value is beta log Z (Z normalises the tilt). What any other policy misses of that value is beta times its KL from
the tilt, so in a world whose responses can all be listed, the trainer's work is measured without sampling.
"""

import copy
import itertools
import math
from dataclasses import dataclass, field

import pytest
import torch
from worlds import BOS, EOS, small_model, trainer_for

from rlhf.models.packed import logits_at
from rlhf.ppo import PPOTrainer
from rlhf.ppo.algorithm import adapt_kl_coef, compute_gae, compute_rewards, policy_losses, value_losses, whiten
from rlhf.ppo.logprobs import ActorCritic, token_logprobs
from rlhf.ppo.metrics import explained_variance


GARBAGE = pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e9])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small are multiplied fastest by one thread, and always in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mask_of(*lengths, width):
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


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


# -------------------------------------------------------------------------------------------------------------------
# Worlds whose responses can all be listed


@dataclass
class World:
    """Every token of the vocabulary is a letter, the pad token too: nothing but its length says where a response ends.

    A run must be short, so the scores and the reference are such that no good response is too rare to be sampled: one
    that is never seen is never learned, and that alone may cost a per cent of the value.
    """

    letters: int
    length: int
    beta: float
    scores: torch.Tensor
    """One for each of `responses`."""
    model: dict
    """Seed and scale of the reference."""
    batch: int
    updates: int
    temperature: float = 1.0
    learning: dict = field(default_factory=dict)
    """Other settings of the trainer."""

    @property
    def responses(self):
        """All complete ones: those that end, and those of full length."""
        return [
            ids
            for length in range(1, self.length + 1)
            for ids in itertools.product(range(self.letters), repeat=length)
            if EOS not in ids[:-1] and (length == self.length or ids[-1] == EOS)
        ]


@dataclass
class Outcome:
    """What a run came to, in exact numbers."""

    before: float
    """Total variation between reference and tilt."""
    after: float
    """Total variation between the trained policy and the tilt."""
    regret: float
    """What the policy misses of the best value, as a share of what the reference misses."""
    value_gap: float
    """How far the last update's objective/rlhf_reward was from the best value."""


@torch.no_grad()
def log_probabilities(model, world):
    """Of all responses, at the world's temperature, in double precision: their probabilities add up to 1."""
    model, total = copy.deepcopy(model).double(), []
    for ids in world.responses:
        logits = model(torch.tensor([[BOS, *ids[:-1]]]), attention_mask=torch.ones(1, len(ids))).logits[0]
        of_tokens = torch.log_softmax(logits / world.temperature, dim=-1)
        total.append(of_tokens.gather(1, torch.tensor(ids).unsqueeze(1)).sum())
    return torch.stack(total)


def play(world, folder, **settings):
    """Train in a world, with the default decay of the learning rate, and measure against its tilt."""
    model, beta, scores = small_model(world.letters, **world.model), world.beta, world.scores.double()
    reference = log_probabilities(model, world)
    best_value = beta * torch.logsumexp(reference + scores / beta, dim=0)
    tilt = reference + (scores - best_value) / beta

    def missed(policy):
        value = (policy.exp() * (scores - beta * (policy - reference))).sum()
        kl = (policy.exp() * (policy - tilt)).sum()
        assert (best_value - value).item() == pytest.approx(beta * kl.item(), abs=1e-9)
        assert kl >= 0
        return kl

    def distance(policy):
        return 0.5 * (policy.exp() - tilt.exp()).abs().sum().item()

    trainer = trainer_for(
        model,
        dict(zip(world.responses, scores.tolist(), strict=True)).__getitem__,
        folder,
        response_length=world.length,
        kl_coef=beta,
        temperature=world.temperature,
        per_device_train_batch_size=world.batch,
        total_episodes=world.batch * world.updates,
        **world.learning,
        **settings,
    )
    last = trainer.train().metrics
    policy = log_probabilities(model, world)
    return Outcome(
        before=distance(reference),
        after=distance(policy),
        regret=(missed(policy) / missed(reference)).item(),
        value_gap=abs(last["objective/rlhf_reward"] - best_value.item()),
    )


def bandit(temperature=1.0):
    """Sixteen arms, pulled once."""
    return World(
        letters=16,
        length=1,
        beta=0.5,
        scores=random(16, seed=3),
        model={"seed": 0, "scale": 0.2},
        batch=256,
        updates=50,
        temperature=temperature,
    )


def tree():
    """Four letters, one of them the end, up to three long: 40 responses of three lengths.

    All scores are 2 higher than they need be. It moves no optimum, but shows mistakes that pay by the token.
    """
    return World(
        letters=4,
        length=3,
        beta=0.3,
        scores=2 + 0.5 * random(40, seed=2),
        model={"seed": 1, "scale": 0.3},
        batch=512,
        updates=70,
        learning={"num_ppo_epochs": 2, "num_mini_batches": 2},
    )


# Patches, each of which leaves one mistake in the trainer that is otherwise as it is.


def pay_by(estimate):
    """`compute_rewards` with another estimator of KL, a function of log pi - log pi_ref."""

    def patched(earned, logprobs, ref_logprobs, mask, kl_coef):
        price = torch.where(mask, -kl_coef * estimate(logprobs - ref_logprobs), 0.0)
        return torch.where(mask, earned, 0.0) + price, price

    return patched


def forget_temperature_in_learning(monkeypatch):
    def patched(model, states, temperature):
        return logits_at(model, states, 1.0 if torch.is_grad_enabled() else temperature)

    monkeypatch.setattr("rlhf.ppo.logprobs.logits_at", patched)


def forget_temperature_in_reference(monkeypatch):
    original = ActorCritic.reference_logprobs

    def patched(actor_critic, rollout):
        with monkeypatch.context() as within:
            within.setattr(actor_critic.args, "temperature", 1.0)
            return original(actor_critic, rollout)

    monkeypatch.setattr(ActorCritic, "reference_logprobs", patched)


def score_after_the_end(monkeypatch):
    """The score of a response that ended arrives a step later, where there is no token to take it."""

    def patched(earned, logprobs, ref_logprobs, mask, kl_coef):
        late = torch.zeros_like(earned)
        late[:, 1:] = earned[:, :-1]
        late[:, -1] += earned[:, -1]
        return compute_rewards(late, logprobs, ref_logprobs, mask, kl_coef)

    monkeypatch.setattr("rlhf.ppo.algorithm.compute_rewards", patched)


def end_is_no_action(monkeypatch):
    """Nothing is learned from end tokens, as if they were pads."""
    original = PPOTrainer.roll_out

    def patched(trainer, *given):
        rollout = original(trainer, *given)
        rollout.loss_mask = rollout.loss_mask & (rollout.generation.responses != EOS)
        return rollout

    monkeypatch.setattr(PPOTrainer, "roll_out", patched)


ESTIMATORS = {
    "k3": lambda off: (-off).exp() - 1 + off,
    "clamped at zero": lambda off: off.clamp(min=0),
    "wrong sign": lambda off: -off,
}


def test_the_worlds_list_every_response_once():
    assert len(bandit().responses) == 16 and len(set(tree().responses)) == 40
    for world in (bandit(), bandit(temperature=0.5), tree()):
        total = log_probabilities(small_model(world.letters, **world.model), world).exp().sum()
        assert total.item() == pytest.approx(1, abs=1e-12)


def test_the_patched_rewards_differ_from_the_real_ones_in_their_estimator_only():
    given, mask = [random(3, 4, seed=seed) for seed in (1, 2, 3)], mask_of(4, 1, 2, width=4)
    for one, other in zip(pay_by(lambda off: off)(*given, mask, 0.3), compute_rewards(*given, mask, 0.3), strict=True):
        assert torch.equal(one, other)


def test_a_one_token_bandit_reaches_the_boltzmann_tilt(tmp_path):
    outcome = play(bandit(), tmp_path)
    assert outcome.before > 0.3
    assert outcome.after < 0.03
    assert 0 <= outcome.regret < 0.01
    # At the optimum every response is worth the same, score and price together: beta log Z, without any noise.
    assert outcome.value_gap < 0.01


def test_at_another_temperature_it_reaches_the_tilt_of_the_tempered_reference(tmp_path):
    outcome = play(bandit(temperature=0.5), tmp_path)
    assert outcome.before > 0.3
    assert outcome.after < 0.03
    assert 0 <= outcome.regret < 0.01
    assert outcome.value_gap < 0.01


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_another_price_of_kl_misses_the_tilt(tmp_path, monkeypatch, estimator):
    monkeypatch.setattr("rlhf.ppo.algorithm.compute_rewards", pay_by(ESTIMATORS[estimator]))
    outcome = play(bandit(), tmp_path)
    assert outcome.after > 0.1
    assert outcome.regret > 0.05


@pytest.mark.parametrize("forget", [forget_temperature_in_learning, forget_temperature_in_reference])
def test_a_forgotten_temperature_misses_the_tilt(tmp_path, monkeypatch, forget):
    forget(monkeypatch)
    outcome = play(bandit(temperature=0.5), tmp_path)
    assert outcome.after > 0.1
    assert outcome.regret > 0.02


@pytest.mark.parametrize("lam", [0.95, 1.0])
def test_a_tree_with_end_tokens_reaches_the_tilt_over_sequences(tmp_path, lam):
    outcome = play(tree(), tmp_path, lam=lam)
    assert outcome.before > 0.3
    assert outcome.after < 0.05
    assert 0 <= outcome.regret < 0.02
    assert outcome.value_gap < 0.02


def test_whitened_rewards_pay_by_the_token_and_miss_it(tmp_path):
    with pytest.warns(UserWarning, match="whiten_rewards"):
        outcome = play(tree(), tmp_path, whiten_rewards=True)
    assert outcome.after > 0.1
    assert outcome.regret > 0.05


@pytest.mark.parametrize("mistake", [score_after_the_end, end_is_no_action])
def test_mistakes_with_the_end_token_miss_it(tmp_path, monkeypatch, mistake):
    mistake(monkeypatch)
    outcome = play(tree(), tmp_path)
    assert outcome.after > 0.3
    assert outcome.regret > 0.5
