"""Names of the metrics in a run's `metrics.jsonl` that more than one room speaks of.

The trainers write them; the figures, the page, the model card and the report read them. PPO's are TRL's names
(`PPOTrainer`, 1.12), the reward model's and DPO's are those of TRL's `RewardTrainer` and `DPOTrainer`.
"""

import re


STEP = "step"
"""Optimizer steps of reward training and of DPO, updates of PPO."""

# Reward model, on the pairs of a step and on held-out pairs; DPO's loss has the same names
LOSS, EVAL_LOSS = "loss", "eval_loss"
ACCURACY, EVAL_ACCURACY = "accuracy", "eval_accuracy"
MARGIN, EVAL_MARGIN = "margin", "eval_margin"
EVAL_PAIRS = "eval_pairs"
"""How many held-out pairs these are means over."""
LABEL_CEILING = "label_ceiling"
"""Accuracy of the rubric itself on the noisy labels of the held-out pairs: the best a reward model can hope for."""

AGREEMENT = "agreement"
"""Share in which two people choose alike, where the pairs are people's own choices."""

# DPO, on the pairs of a step and on held-out pairs. An answer's implicit reward is beta times its log-ratio.
DPO_ACCURACY, DPO_EVAL_ACCURACY = "rewards/accuracies", "eval_rewards/accuracies"
DPO_MARGIN, DPO_EVAL_MARGIN = "rewards/margins", "eval_rewards/margins"

# PPO, means over the responses of an update
EPISODE = "episode"
"""Responses sampled and learned from so far."""
EPISODES_PER_SECOND = "eps"
SCORE, SCORE_STD = "objective/scores_raw", "objective/scores_std"
"""Mean and standard deviation of the score as the rewards gave it, before normalisation and penalties."""
KL = "objective/kl"
"""Nats per response, from the sampled tokens."""
OBJECTIVE_SCORE, KL_PENALTY = "objective/scores", "objective/non_score_reward"
"""Means of the two parts of what is maximised: the score after normalisation and penalties, and minus kl_coef x KL."""
TOKEN_ENTROPY = "policy/entropy_avg"
"""Nats, of the distribution of a token."""
ENTROPY = "objective/entropy"
"""Minus the log-probability of the sampled response, in nats per response."""
MEAN_LENGTH = "completions/mean_length"
"""Tokens per response."""
CLIPPED_RATIO = "completions/clipped_ratio"
"""Share of the responses that ran into the length limit."""
MOST_COMMON_RATIO = "completions/most_common_ratio"
"""Share of the responses that are the most frequent one: 1 where all are the same."""


def rewards_of(row: dict) -> dict[str, str]:
    """The rewards that an update logged, by name: the metric of each one's mean, whose spread ends in `/std`.

    TRL's DPO logs `rewards/...` too, of other kinds.
    """
    found = (re.fullmatch(r"rewards/(.*)/mean", key, re.DOTALL) for key in row)
    return {match[1]: match[0] for match in found if match}


# PPO's evaluation on held-out prompts
EVAL_SCORE, EVAL_BASE_SCORE = "eval/score", "eval/base_score"
EVAL_GAIN, EVAL_GAIN_LOW, EVAL_GAIN_HIGH = "eval/gain", "eval/gain_ci_low", "eval/gain_ci_high"
EVAL_WIN_RATE = "eval/win_rate"
EVAL_KL = "eval/kl"
"""Exact over the vocabulary at each token, in nats per response."""
EVAL_MEAN_LENGTH, EVAL_EOS_RATE = "eval/mean_length", "eval/eos_rate"
