"""Settings of reward-model training."""

from dataclasses import dataclass

from rlhf.config.checking import NonNegativeInt
from rlhf.config.shared import PairTrainingSettings


@dataclass
class RewardArguments(PairTrainingSettings):
    """Settings of `python -m rlhf reward`: TRL's RewardTrainer on a classifier initialised from a language model."""

    seed: NonNegativeInt = 0
    """Seed of the new score head and of the order of pairs."""
