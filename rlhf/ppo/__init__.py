"""PPO for language models. Start with `algorithm.py`; README.md compares with TRL."""

from rlhf.ppo.trainer import Diverged, PPOConfig, PPOTrainer


__all__ = ["Diverged", "PPOConfig", "PPOTrainer"]
