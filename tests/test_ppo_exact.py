"""PPO in small worlds whose best policy is known exactly, and with mistakes in it that must miss that policy.

The policy that maximises E[score] - beta KL(policy || reference) is the reference tilted by exp(score / beta), and
its value is beta log Z (Z normalises the tilt). What any other policy misses of that value is beta times its KL from
the tilt, so in a world whose responses can all be listed, the trainer's work is measured without sampling.
"""

import copy
import itertools
from dataclasses import dataclass, field

import pytest
import torch
from worlds import BOS, EOS, mask_of, random, replace, small_gpt2, trainer_for

from rlhf.models.packed import logits_at
from rlhf.ppo import PPOTrainer
from rlhf.ppo.algorithm import compute_rewards
from rlhf.ppo.logprobs import ActorCritic


pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread")]


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
    model, beta, scores = small_gpt2(world.letters, **world.model), world.beta, world.scores.double()
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
        batch=256,
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

    replace(monkeypatch, "logits_at", patched)


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

    replace(monkeypatch, "compute_rewards", patched)


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
        total = log_probabilities(small_gpt2(world.letters, **world.model), world).exp().sum()
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
    replace(monkeypatch, "compute_rewards", pay_by(ESTIMATORS[estimator]))
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
