"""Settings of reward-model training."""

from dataclasses import dataclass

from rlhf.config.checking import BadInput, NonNegativeInt, PathOrName, PositiveInt, Settings
from rlhf.config.shared import PairTrainingSettings


@dataclass
class FeedbackSettings(Settings):
    """Whether a reward model learns from what people chose."""

    feedback: PathOrName | None = None
    """Reward model: folder of people's choices (`feedback`), to learn from beside the pairs of dataset_name."""
    feedback_only: bool = False
    """Reward model: learn from people's choices alone."""
    feedback_epochs: PositiveInt = 4
    """Reward model: passes over people's choices within each pass over the pairs of dataset_name."""
    feedback_prompts: NonNegativeInt = 512
    """Reward model: prompts of dataset_name to which the base model answers four times; what the choices say of these
    answers is learned as well, and choices that the others contradict are left out. 0 learns from all choices only."""

    def check(self) -> None:
        """Check all fields, and that there are choices to learn from alone."""
        super().check()
        if self.feedback_only and self.feedback is None:
            raise BadInput("feedback_only needs feedback, the folder of the choices.", field="feedback")


@dataclass
class RewardArguments(FeedbackSettings, PairTrainingSettings):
    """Settings of `python -m rlhf reward`: TRL's RewardTrainer on a classifier initialised from a language model."""

    seed: NonNegativeInt = 0
    """Seed of the new score head and of the order of pairs."""
