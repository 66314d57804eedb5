"""Language models: loaded by name, read without padding, sampled from, and scored.

`loading` finds and loads them, `packed` is the forward pass, `generate` samples, `prompts` turns texts into token ids,
`scoring` turns answers into scores.
"""

from rlhf.models.loading import (
    BASE,
    check_policy,
    check_value_model,
    context_size,
    load_policy,
    load_reward_model,
    load_tokenizer,
    lora,
    merged,
    padding_id,
    resolve,
    revision,
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
    "size_mb",
]
