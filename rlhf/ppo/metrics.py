"""What an update reports: TRL's keys, with sums per response and means per response token, over all ranks.

`approxkl_avg` is TRL's, half the squared log-ratio (Schulman's k2). Names that other rooms read stand in
`rlhf/metrics.py`.
"""

from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from rlhf import metrics, ranks
from rlhf.models.scoring import RewardScores


if TYPE_CHECKING:
    from rlhf.ppo.algorithm import Rollout
    from rlhf.ppo.trainer import PPOTrainer


class LearningStats:
    """What the losses computed, summed over the tokens of each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor | float]] = []
        """Sums over tokens by name, and num_tokens and grad_norm, of each optimizer step."""
        self.epochs = 0
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, weight: torch.Tensor, **per_token: torch.Tensor) -> None:
        """Add numbers (n,) of tokens that count by weight (n,)."""
        for name, values in per_token.items():
            self._sums[name] = self._sums.get(name, 0.0) + (values.detach().float() * weight).sum()

    def end_step(self, num_tokens: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """Close an optimizer step on `num_tokens` tokens of all ranks."""
        self.steps.append({**ranks.sum_over_ranks(self._sums), "num_tokens": num_tokens, "grad_norm": grad_norm})
        self._sums = {}

    def end_epoch(self) -> dict[str, float]:
        """Close an epoch; returns its means over tokens."""
        self.epochs += 1
        # Every epoch has equally many steps; the last ones are this epoch's.
        return self._means(self.steps[-(len(self.steps) // self.epochs) :])

    def means(self) -> dict[str, float]:
        """Means over the tokens of all epochs."""
        return self._means(self.steps)

    @staticmethod
    def _means(steps: list[dict]) -> dict[str, float]:
        # Sums over sums, not a mean of means: a step with more tokens counts for more.
        num_tokens = sum(step["num_tokens"] for step in steps)
        names = steps[0].keys() - {"num_tokens", "grad_norm"}
        return {name: float(sum(step[name] for step in steps) / num_tokens) for name in names}


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
    """1 - Var(R - V) / Var(R), both (N,) -> (); 1 is a perfect critic, 0 one that knows the mean at best."""
    return 1 - (returns - values).var(correction=0) / returns.var(correction=0).clamp(min=1e-8)


def update_metrics(
    trainer: "PPOTrainer", rollout: "Rollout", stats: LearningStats, clock: list[float]
) -> dict[str, float]:
    """The metrics of an update, from a rollout with all its phases' tensors.

    Args:
        clock: seconds at the start of the update and after sampling, scoring and learning.
    """
    args, generation, mask, gather = trainer.args, rollout.generation, rollout.mask, ranks.gather
    # A phase takes as long as it does on the slowest rank.
    own = torch.tensor([[end - start for start, end in pairwise(clock)]], dtype=torch.double)
    seconds = dict(zip(("rollout", "score", "update"), gather(own).amax(dim=0).tolist(), strict=True))
    # Responses of all ranks, (B,) each
    lengths, ended = gather(mask.sum(dim=1)), gather(generation.ended)
    raw_scores, scores = gather(rollout.raw_scores), gather(rollout.scores)
    non_score = gather(rollout.non_score_rewards.sum(dim=1))
    sequence_nll = gather(-(generation.logprobs * mask).sum(dim=1))
    responses = ranks.gather_list([tuple(response) for response in generation.lists()])
    read_tokens = sum(ranks.all_gather_object(sum(map(len, rollout.rows))))  # prompts and responses
    learned = stats.means()
    ratios = torch.tensor([float(step["ratio"] / step["num_tokens"]) for step in stats.steps])
    clipped = rollout.score_clipped
    return {
        metrics.EPISODE: (trainer.state.global_step + 1) * args.batch_size,
        metrics.EPISODES_PER_SECOND: len(scores) / sum(seconds.values()),
        # TRL calls this entropy: its expectation is the entropy of the policy over whole responses.
        metrics.ENTROPY: sequence_nll.mean().item(),
        # What is maximised is the sum of the two: the score as shaped below, and minus kl_coef times the KL.
        metrics.KL_PENALTY: non_score.mean().item(),
        "objective/rlhf_reward": (scores + non_score).mean().item(),
        # After normalisation, clipping and the penalty for not ending; SCORE is before all of these.
        metrics.OBJECTIVE_SCORE: scores.mean().item(),
        metrics.SCORE: raw_scores.mean().item(),
        metrics.SCORE_STD: raw_scores.std(correction=0).item(),
        "objective/scores_clipped": 0.0 if clipped is None else gather(clipped).float().mean().item(),
        "objective/eos_penalty": (args.missing_eos_penalty or 0.0) * (~ended).float().mean().item(),
        "objective/kl_coef": trainer.kl_coef,
        **(_kl(args.kl_estimator, rollout) if rollout.exact_kl is not None else {}),
        # How far the update's steps have moved the policy from the one that sampled, means over tokens and steps.
        "policy/approxkl_avg": learned["k2"],
        "policy/clipfrac_avg": learned["policy_clipped"],
        metrics.TOKEN_ENTROPY: learned["entropy"],  # of a token's distribution, unlike ENTROPY
        "policy/epochs_run": stats.epochs,  # fewer than num_ppo_epochs after early stopping
        "loss/policy_avg": learned["policy_loss"],
        # Should stay near 1; its variance is that of the optimizer steps' means.
        "val/ratio": learned["ratio"],
        "val/ratio_var": ratios.var(correction=0).item(),
        "val/num_eos_tokens": int(ended.sum()),
        **(_critic(rollout, learned) if rollout.values is not None else {}),
        **_lengths(lengths.float(), ended),
        metrics.MOST_COMMON_RATIO: Counter(responses).most_common(1)[0][1] / len(responses),
        # Before clipping, the mean over optimizer steps.
        "grad_norm": sum(float(step["grad_norm"]) for step in stats.steps) / len(stats.steps),
        "lr": trainer.lr_scheduler.get_last_lr()[0],
        **{f"time/{phase}": value for phase, value in seconds.items()},
        "tokens_per_second/rollout": int(lengths.sum()) / seconds["rollout"],
        "tokens_per_second/score": read_tokens / seconds["score"],
        "tokens_per_second/update": stats.epochs * read_tokens / seconds["update"],
        **_rewards(rollout.reward_outputs),
    }


def _kl(estimator: str, rollout: "Rollout") -> dict[str, float]:
    """KL from the reference in nats per response: estimated from the sampled tokens, and exact over the vocabulary."""
    # Estimators of Schulman (2020): k1 is unbiased and may be negative, k3 is unbiased and never is.
    log_ratio = torch.where(rollout.mask, rollout.logprobs - rollout.ref_logprobs, 0.0)  # (B, T)
    estimate = log_ratio if estimator == "k1" else (-log_ratio).exp() - 1 + log_ratio
    return {
        metrics.KL: ranks.gather(estimate.sum(dim=1)).mean().item(),
        "objective/kl_exact": ranks.gather(rollout.exact_kl.sum(dim=1)).mean().item(),
    }


def _critic(rollout: "Rollout", learned: dict[str, float]) -> dict[str, float]:
    """The critic against what came of it: returns are the targets of its loss."""
    returns, values = (ranks.gather(tensor[rollout.mask]) for tensor in (rollout.returns, rollout.values))  # (N,) each
    return {
        "loss/value_avg": learned["value_loss"],
        "val/clipfrac_avg": learned["value_clipped"],
        "val/mean": values.mean().item(),
        "val/explained_variance": explained_variance(values, returns).item(),
        "returns/mean": returns.mean().item(),
        "returns/var": returns.var(correction=0).item(),
    }


def _lengths(lengths: torch.Tensor, ended: torch.Tensor) -> dict[str, float]:
    """Lengths (B,) in tokens, and whether each response ended (B,)."""
    return {
        metrics.MEAN_LENGTH: lengths.mean().item(),
        "completions/min_length": lengths.min().item(),
        "completions/max_length": lengths.max().item(),
        metrics.CLIPPED_RATIO: (~ended).float().mean().item(),
        "completions/mean_terminated_length": lengths[ended].mean().item() if ended.any() else 0.0,
    }


def _rewards(reward_outputs: RewardScores) -> dict[str, float]:
    """Mean and standard deviation of each reward's scores, and what the functions logged: the mean over ranks."""
    reported = {}
    for name, own in reward_outputs.by_reward.items():
        scores = ranks.gather_list(own)  # one per response; None for no opinion; a list if given by token
        totals = [sum(score) if isinstance(score, list) else score for score in scores if score is not None]
        reported[f"rewards/{name}/mean"] = torch.tensor(totals).mean().item()
        reported[f"rewards/{name}/std"] = torch.tensor(totals).std(correction=0).item()
    logged = defaultdict(list)
    for name, value in (entry for part in ranks.all_gather_object(reward_outputs.logged) for entry in part.items()):
        logged[name].append(value)
    return reported | {name: sum(values) / len(values) for name, values in logged.items()}
