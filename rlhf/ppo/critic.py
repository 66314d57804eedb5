"""The critic: a value head on the policy's own trunk, or a value model of its own."""

import copy

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlhf.models.packed import plain_model
from rlhf.models.scoring import RewardSource


class ValueHead(nn.Module):
    """A linear layer from hidden states (N, d) to values (N,), zero at the start, in full precision."""

    # Zero at the start: the first advantages are then the returns themselves, whatever the critic would have guessed.
    # Full precision under autocast too: bfloat16 has some three digits, and values are regressed.
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.score = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, d) -> (N,)"""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.score(hidden.float()).squeeze(1)


def new_value_model(policy: PreTrainedModel, rewards: list[RewardSource]) -> PreTrainedModel:
    """A copy of the first reward model that reads the policy's tokens, else the policy's trunk with a new head."""
    # A reward model has learned to judge the very responses whose score the critic is to predict (Ouyang et al. 2022,
    # 2203.02155, start the critic from it too).
    for reward in rewards:
        if reward.is_model and reward.same_tokenizer:
            return copy.deepcopy(reward.source)
    # Otherwise it begins as the policy: it knows the language, and its head is as zero as a new value head.
    inner = plain_model(policy)
    config = copy.deepcopy(inner.config)
    config.num_labels = 1
    value_model = AutoModelForSequenceClassification.from_config(config)
    # Of a policy with adapters, the weights below them.
    weights = inner.base_model.state_dict()
    below = {name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name}
    value_model.base_model.load_state_dict(below)
    nn.init.zeros_(value_model.score.weight)
    return value_model
