"""What every command takes that scores answers."""

from dataclasses import dataclass

from rlhf.config.checking import Settings, Words


@dataclass
class RewardFuncSettings(Settings):
    """Reward functions, under TRL's name; `rlhf.rewards` turns their names into functions."""

    reward_funcs: Words | None = None
    """Reward functions, beside a reward model or instead of one: length:20, keyword:WORD, regex:PATTERN, sentiment, or
    FILE.py:NAME of your own; NAME@0.5 counts half, while a reward model always counts 1."""
