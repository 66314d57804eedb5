"""PPO for language models. Read `algorithm.py` first; README.md explains the other files and compares with TRL."""

from rlhf.config import Diverged
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.trainer import PPOTrainer


__all__ = ["Diverged", "PPOConfig", "PPOTrainer"]
