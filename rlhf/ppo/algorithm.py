"""PPO for language models: the formulas, then one update in six numbered phases.

The losses are those of Schulman et al. (2017, arXiv 1707.06347), the KL penalty that of Ziegler et al. (2019, arXiv
1909.08593), and many details follow Huang et al. (2024, arXiv 2403.17031). Settings and metrics have TRL's names.

`plain_update` in `tests/test_ppo_plain_loop.py` is the same without batching; they agree to 2e-6. Elsewhere stand the
settings (`config.py`), forward and backward passes that fit in memory (`logprobs.py`), the metrics (`metrics.py`), and
the loop over updates with all that surrounds it: construction, evaluation, saving, resuming (`trainer.py`).

Shapes: B responses of at most T tokens, N tokens in a micro-batch, V tokens in the vocabulary, d the model's width.
Tensors over tokens are (B, T) with a mask; a token after the end token does not exist. Masks come from lengths, never
from the value of a pad token, so the end token is an action that is learned like any other.

Under a launcher each rank holds the rows of its own prompts, and every mean, sum and normalisation is taken over all
ranks: an update is the same however many processes share it.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.utils import clip_grad_norm_

from rlhf import ranks
from rlhf.config import Diverged
from rlhf.models.generate import Generation
from rlhf.models.prompts import Prompt
from rlhf.models.scoring import RewardScores
from rlhf.ppo.metrics import LearningStats, update_metrics
from rlhf.runs.finite import check_finite, check_weights


if TYPE_CHECKING:
    from rlhf.ppo.trainer import PPOTrainer

SAMPLE, SHUFFLE, SHOW = range(3)
"""What an update draws random numbers for; each has a generator of its own."""


@dataclass
class Rollout:
    """The responses of this rank and what the phases compute for them; (B, T) unless a comment says otherwise."""

    prompts: list[Prompt]
    rows: list[list[int]]  # B lists of ids, prompt and response, without pads
    generation: Generation  # responses, mask, logprobs, ended (B,), hidden (B, T, d)
    loss_mask: torch.Tensor  # the tokens that losses and whitening see
    reward_outputs: RewardScores | None = None  # scores by reward function
    raw_scores: torch.Tensor | None = None  # (B,) weighted sum over reward functions
    ref_logprobs: torch.Tensor | None = None
    exact_kl: torch.Tensor | None = None  # KL(policy || reference) over the vocabulary at each token
    values: torch.Tensor | None = None
    scores: torch.Tensor | None = None  # (B,) what is maximised: normalised, clipped, minus the penalty for not ending
    score_clipped: torch.Tensor | None = None  # (B,) whether reward_clip_range cut the score
    non_score_rewards: torch.Tensor | None = None  # the KL penalty
    rewards: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None

    @property
    def mask(self) -> torch.Tensor:
        """True on the tokens of responses."""
        return self.generation.mask

    @property
    def logprobs(self) -> torch.Tensor:
        """Log-probabilities under the policy that sampled: the old policy of the ratio."""
        return self.generation.logprobs

    def measured(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What the models and the rewards gave, by name; behind a response's end anything may stand."""
        yield "A log-probability", self.logprobs[self.mask]
        yield "A score", self.raw_scores
        yield "A log-probability of the reference", self.ref_logprobs[self.mask]
        if self.values is not None:
            yield "A value of the critic", self.values[self.mask]


# ---------------------------------------------------------------------------------------------------------------------
# The formulas


def compute_rewards(
    score_rewards: torch.Tensor, logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor, kl_coef: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """score_rewards, logprobs, ref_logprobs, mask (B, T) -> rewards (B, T) and their KL part (B, T).

    r_t = score_t - kl_coef * (log pi(y_t) - log pi_ref(y_t)), where score_t is the score at a response's last token,
    the end token or the one at the length limit, and 0 before (Ziegler et al., 2.1). The log-ratio itself ("k1") is
    the estimator whose optimum is that of E[score] - kl_coef * KL; k3 has another one.
    """
    # This is where the KL penalty enters. `where`, not a product with the mask: behind the end anything may stand.
    non_score = torch.where(mask, -kl_coef * (logprobs - ref_logprobs), 0.0)
    return torch.where(mask, score_rewards, 0.0) + non_score, non_score


def compute_gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """rewards, values, mask (B, T) -> advantages and returns (B, T), 0 outside the mask.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, with V and A zero after the last token
    (Schulman et al. 1506.02438, eq. 16); the return is R_t = A_t + V_t.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    next_advantage, next_value = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])  # (B,)
    for t in reversed(range(values.size(1))):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # Behind a row's end nothing is carried: rows of different lengths share the loop.
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0.0)
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def compute_rloo(rewards: torch.Tensor, mask: torch.Tensor, num_generations: int) -> torch.Tensor:
    """rewards, mask (B, T) -> advantages (B, T): a response's return minus the mean of its siblings' returns.

    The rows are groups of `num_generations` answers to one prompt, and a response as a whole is one action: with
    R_i = sum_t r_it, A_i = R_i - mean_{j != i} R_j at each of its tokens (Ahmadian et al. 2402.14740, eq. 9). The
    leave-one-out mean does not depend on response i, so it biases nothing.
    """
    returns = torch.where(mask, rewards, 0.0).sum(dim=1).view(-1, num_generations)  # (prompts, k)
    others = (returns.sum(dim=1, keepdim=True) - returns) / (num_generations - 1)
    return (returns - others).view(-1, 1) * mask


def compute_grpo(rewards: torch.Tensor, mask: torch.Tensor, num_generations: int) -> torch.Tensor:
    """rewards, mask (B, T) -> advantages (B, T): returns standardised within each group of answers to one prompt.

    A_i = (R_i - mean_j R_j) / std_j R_j (Shao et al. 2402.03300, 4.1.2). There the KL is a term of the loss, estimated
    by k3; here it is part of the rewards, as for the other estimators, which keeps its optimum.
    """
    returns = torch.where(mask, rewards, 0.0).sum(dim=1).view(-1, num_generations)  # (prompts, k)
    # 1e-4 as in TRL: answers that are all worth the same teach nothing.
    standardised = (returns - returns.mean(dim=1, keepdim=True)) / (returns.std(dim=1, keepdim=True) + 1e-4)
    return standardised.view(-1, 1) * mask


def compute_reinforce_plus_plus(rewards: torch.Tensor, mask: torch.Tensor, gamma: float) -> torch.Tensor:
    """rewards, mask (B, T) -> the discounted return from each token on (B, T), to be whitened over the update.

    REINFORCE with the KL penalty by token, whose baseline is the mean of the whole update (Hu 2501.03262, eq. 8).
    """
    # It is GAE with lambda 1 around a critic that expects nothing.
    return compute_gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)[0]


def whiten(values: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Scale the valid entries of all ranks to mean 0 and variance 1; values, mask (B, T) -> (B, T), 0 outside."""
    valid = ranks.gather(values[mask])  # (N,) of all ranks
    # A single entry has no variance: it is left as large as it is.
    variance, mean = torch.var_mean(valid) if valid.numel() > 1 else (valid.new_ones(()), valid.mean())
    whitened = (values[mask] - mean) * torch.rsqrt(variance + 1e-8) + (0.0 if shift_mean else mean)
    return torch.zeros_like(values).masked_scatter(mask, whitened)


def policy_losses(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    cliprange: float,
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clipped surrogate loss; all (N,) -> loss (N,), probability ratio rho (N,), whether it was clipped (N,).

    max(-A rho, -A clip(rho, 1 - cliprange, 1 + cliprange_high)) (Schulman et al., eq. 7); where A < 0, at most
    -A dual_clip (Ye et al. 1912.09729).
    """
    # exp(20) is far beyond every clip range; without the clamp one absurd ratio would be infinite, its gradient NaN.
    ratio = torch.exp((logprobs - old_logprobs).clamp(-20, 20))
    # The larger loss counts: clipping takes away the gain of moving further, never the cost of having moved too far.
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + (cliprange_high or cliprange))
    loss = torch.maximum(unclipped, clipped)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, loss.minimum(-advantages * dual_clip), loss)
    return loss, ratio, clipped > unclipped


def value_losses(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange_value: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped squared error; all (N,) -> loss (N,), whether it was clipped (N,). As in OpenAI's baselines."""
    # A value may move by cliprange_value per update; beyond that its gradient is zero, unless it moved the wrong way.
    values_clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    unclipped, clipped = (values - returns) ** 2, (values_clipped - returns) ** 2
    return 0.5 * torch.maximum(unclipped, clipped), clipped > unclipped


@dataclass
class ScoreStats:
    """Mean and spread of the scores so far, by which scores are normalised."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances from the mean

    def normalization(self, kind: str, raw_scores: torch.Tensor) -> tuple[float, float]:
        """The shift and the scale of an update's scores, raw_scores (B,) being those of all ranks.

        "running" takes in every batch. "reference" takes in the first one only, which the policy wrote while it still
        was the reference (Ziegler et al., 2.2), and keeps it, so that kl_coef keeps its meaning.
        """
        if kind == "running" or (kind == "reference" and self.count == 0):
            # Moments of two batches are combined as by Chan et al. (1983).
            count, mean = len(raw_scores), raw_scores.mean().item()
            total, difference = self.count + count, mean - self.mean
            self.squares += ((raw_scores - mean) ** 2).sum().item() + difference**2 * self.count * count / total
            self.mean += difference * count / total
            self.count = total
        if kind == "none":
            return 0.0, 1.0
        std = math.sqrt(self.squares / max(1, self.count - 1))
        return self.mean, std if std > 1e-6 else 1.0  # a reward that nothing has earned yet has no scale


def adapt_kl_coef(kl_coef: float, kl: float, target: float, episodes: int, horizon: int) -> float:
    """The adaptive controller of Ziegler et al. (2.2): beta (1 + clip(KL / target - 1, +-0.2) n / horizon)."""
    # The error is clipped to a fifth, so that one odd batch does not throw the coefficient far.
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / horizon)


# ---------------------------------------------------------------------------------------------------------------------
# One update


def ppo_update(trainer: "PPOTrainer", prompts: list[Prompt]) -> dict[str, float]:
    """Answer `prompts` (those of all ranks) and learn from the answers; returns the update's metrics.

    Raises:
        Diverged: a score, a log-probability, a value, a gradient or a weight is not finite; but for a weight, all
            weights are as they were before that step.
    """
    args, actor_critic, update = trainer.args, trainer.actor_critic, trainer.state.global_step + 1
    clock = [_now(args.device)]

    # 1. Roll out: the policy answers, and keeps the log-probabilities as it samples: the old policy of the ratio.
    rollout = trainer.roll_out(prompts, trainer.generator(SAMPLE))
    mask, loss_mask = rollout.mask, rollout.loss_mask  # (B, T), (B, T)
    clock.append(_now(args.device))

    # 2. Score: what the rewards give each response, how likely each token is under the reference, and what the critic
    #    expects from each token on.
    rollout.raw_scores, score_rewards = trainer.score(rollout)  # (B,), (B, T)
    rollout.ref_logprobs, rollout.exact_kl = actor_critic.reference_logprobs(rollout)  # (B, T), (B, T)
    if actor_critic.critic is not None:
        rollout.values = actor_critic.values(rollout)  # (B, T), the old values that the value loss is clipped around
    check_finite(rollout.measured(), f"update {update}")

    # 3. Rewards: the score at the last token, minus the KL penalty at every token.
    # PPOConfig takes scores as they are; the commands measure them in standard deviations of the reference's.
    shift, scale = trainer.score_stats.normalization(args.reward_normalization, ranks.gather(rollout.raw_scores))
    scores, score_rewards = (rollout.raw_scores - shift) / scale, score_rewards / scale
    if args.reward_clip_range is not None:
        rollout.score_clipped = scores.abs() > args.reward_clip_range
        scores = scores.clamp(-args.reward_clip_range, args.reward_clip_range)
    # A response that ran into the length limit was cut off mid-sentence: that costs a fixed amount.
    if args.missing_eos_penalty is not None:
        scores = scores - args.missing_eos_penalty * (~rollout.generation.ended)
    # Rewards may come by token. What shift, clipping and penalty change in their sum is settled at the last token.
    last = mask.sum(dim=1) - 1  # (B,)
    score_rewards[torch.arange(len(scores), device=scores.device), last] += scores - score_rewards.sum(dim=1)
    rollout.scores = scores
    rollout.rewards, rollout.non_score_rewards = compute_rewards(
        score_rewards, rollout.logprobs, rollout.ref_logprobs, mask, trainer.kl_coef
    )
    # TRL's option, off by default: where lengths vary, scaling rewards moves the optimum.
    if args.whiten_rewards:
        rollout.rewards = whiten(rollout.rewards, mask, shift_mean=False)

    # 4. Advantages: how much better each token turned out than the critic expected or, without a critic, than other
    #    answers did.
    estimator = args.advantage_estimator
    if estimator == "gae":
        # returns = advantages + values are the critic's targets; they stay as they are when advantages are whitened.
        rollout.advantages, rollout.returns = compute_gae(rollout.rewards, rollout.values, mask, args.gamma, args.lam)
    elif estimator == "rloo":
        rollout.advantages = compute_rloo(rollout.rewards, mask, args.num_generations)
    elif estimator == "grpo":
        rollout.advantages = compute_grpo(rollout.rewards, mask, args.num_generations)
    elif estimator == "reinforce++":
        rollout.advantages = compute_reinforce_plus_plus(rollout.rewards, mask, args.gamma)
    # To mean 0 and variance 1 over the tokens that are learned: the learning rate then suits any scale of scores. A
    # group's answers have a baseline already, and whitening would blow up the noise that vanishes at RLOO's optimum.
    if args.normalize_advantages and estimator in ("gae", "reinforce++"):
        rollout.advantages = whiten(rollout.advantages, loss_mask)
    clock.append(_now(args.device))

    # 5. Learn: several epochs over the batch, an optimizer step per mini-batch.
    stats, shuffle = LearningStats(), trainer.generator(SHUFFLE)
    # The policy waits until the critic has warmed up: before that its advantages mean little.
    policy_learns = update > args.value_warmup_steps
    for _ in range(args.num_ppo_epochs):
        for rows, num_tokens in mini_batches(loss_mask, args.num_mini_batches, args.num_generations, shuffle):
            # As many rows at once as memory holds; their gradients add up to that of the whole mini-batch.
            for batch in actor_critic.micro_batches(rollout, rows):
                inside = mask[batch.rows]
                # The tokens of the micro-batch one after another, (N,) each.
                mb_logprobs, mb_advantages, mb_loss_mask = (
                    tensor[batch.rows][inside] for tensor in (rollout.logprobs, rollout.advantages, loss_mask)
                )
                weight = mb_loss_mask.float()

                def policy_loss(logprobs: torch.Tensor, entropy: torch.Tensor, at: slice) -> torch.Tensor:
                    """Log-probabilities and entropies (n,) of the tokens `at` of this micro-batch -> loss ()."""
                    loss, ratio, clipped = policy_losses(
                        logprobs, mb_logprobs[at], mb_advantages[at],
                        args.cliprange, args.cliprange_high, args.dual_clip,
                    )  # fmt: skip
                    # Two estimates of how far this update has moved the policy (Schulman 2020, "Approximating KL").
                    log_ratio = logprobs - mb_logprobs[at]
                    k2, k3 = 0.5 * log_ratio**2, ratio - 1 - log_ratio
                    stats.add(weight[at], policy_loss=loss, policy_clipped=clipped, ratio=ratio)
                    stats.add(weight[at], entropy=entropy, k2=k2, k3=k3)
                    bonus = args.entropy_coef * entropy if args.entropy_coef > 0 else 0.0
                    # Divided by the tokens of the mini-batch: every token weighs the same, however rows are batched.
                    return ((loss - bonus) * weight[at]).sum() / num_tokens

                def value_loss(values: torch.Tensor) -> torch.Tensor:
                    """Values (N,) of this micro-batch -> loss ()."""
                    old_values, returns = rollout.values[batch.rows][inside], rollout.returns[batch.rows][inside]
                    loss, clipped = value_losses(values, old_values, returns, args.cliprange_value)
                    stats.add(weight, value_loss=loss, value_clipped=clipped)
                    return args.vf_coef * (loss * weight).sum() / num_tokens

                actor_critic.backward(batch, policy_loss, value_loss, policy_learns=policy_learns)
            # Every rank's loss is divided by the tokens of all ranks, so gradients are summed, not averaged.
            ranks.all_reduce_gradients(trainer.trainable)
            grad_norm = clip_grad_norm_(trainer.trainable, args.max_grad_norm)
            # Before the step, so that the weights are still those of the last good one.
            if not torch.isfinite(grad_norm):
                trainer.optimizer.zero_grad()
                raise Diverged(f"The gradient was not finite at update {update}; lower learning_rate.")
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            stats.end_step(num_tokens, grad_norm)
        # Enough moved: further epochs on this batch would learn from a policy that is no longer the one that sampled.
        epoch = stats.end_epoch()
        if args.early_stopping and epoch["k3"] > 1.5 * args.target_kl:
            break
    check_weights(trainer.optimizer, f"update {update}", trainer.model, trainer.value_model)
    clock.append(_now(args.device))

    # 6. Report, and let the KL coefficient follow the KL if it is to.
    metrics = update_metrics(trainer, rollout, stats, clock)
    if args.kl_controller == "adaptive":
        kl = metrics["objective/kl"]
        trainer.kl_coef = adapt_kl_coef(trainer.kl_coef, kl, args.kl_target, args.batch_size, args.kl_horizon)
    return metrics


def mini_batches(
    loss_mask: torch.Tensor, num_mini_batches: int, num_generations: int, generator: torch.Generator
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Deal the responses of all ranks into mini-batches: this rank's rows of each, and its tokens over all ranks ().

    loss_mask (B, T) is this rank's; the tokens counted are those that the losses see. Answers to one prompt stay
    together where there are enough prompts, as they share its cost.
    """
    num_tokens = ranks.gather(loss_mask.sum(dim=1))  # (B of all ranks,)
    # All ranks shuffle alike, and each takes from a mini-batch the rows it holds, which may be none.
    together = num_generations if len(num_tokens) // num_generations % num_mini_batches == 0 else 1
    order = torch.arange(len(num_tokens)).view(-1, together)
    order = order[torch.randperm(len(order), generator=generator)].flatten().tolist()
    size, first = len(order) // num_mini_batches, ranks.rank() * len(loss_mask)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        own = [row - first for row in chosen if 0 <= row - first < len(loss_mask)]
        yield own, num_tokens[chosen].sum().clamp(min=1)


def _now(device: torch.device) -> float:
    """Seconds, once a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
