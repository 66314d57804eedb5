"""Reward functions by name: built-in ones, and those of a person's own file. See README.md here."""

from rlhf.rewards.builtin import BUILT_IN
from rlhf.rewards.functions import RewardName, blamed, digests, keep, kept, load_functions


__all__ = ["BUILT_IN", "RewardName", "blamed", "digests", "keep", "kept", "load_functions"]
