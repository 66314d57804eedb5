"""Language models: found by name (`finding`), loaded (`loading`), read without padding (`packed`), sampled from
(`generate`), and given prompts as token ids (`prompts`) and scores for their answers (`scoring`).
"""

from rlhf.models.finding import BASE, resolve
from rlhf.models.loading import (
    check_policy,
    check_value_model,
    context_size,
    load_policy,
    load_reward_model,
    load_tokenizer,
    lora,
    merged,
    padding_id,
    revision,
    rewarded_label,
    size_mb,
)


__all__ = [
    "BASE",
    "check_policy",
    "check_value_model",
    "context_size",
    "load_policy",
    "load_reward_model",
    "load_tokenizer",
    "lora",
    "merged",
    "padding_id",
    "resolve",
    "revision",
    "rewarded_label",
    "size_mb",
]
