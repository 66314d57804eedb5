"""Settings of learning while people choose."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import NonNegativeFloat

from rlhf.config.checking import (
    BatchSize,
    Coefficient,
    Fraction,
    LearningRate,
    PathOrName,
    PositiveInt,
)
from rlhf.config.ppo import PPOArguments
from rlhf.config.reward import RewardArguments
from rlhf.config.shared import GoOnSettings
from rlhf.config.tools import AskingSettings


@dataclass
class LiveArguments(GoOnSettings, AskingSettings):
    """Settings of `python -m rlhf live`: reward model and policy go on learning after every few choices."""

    output_dir: PathOrName | None = None
    """Run directory; by default a new one under runs/."""
    choices_per_state: PositiveInt = 10
    """New choices after which both models learn; what they then are is a state."""
    num_states: PositiveInt | None = None
    """States after which it ends; by default it runs until it is stopped."""
    choices_after: NonNegativeFloat = 0.0
    """Leave choices aside that were made before this time, in seconds since 1970."""
    updates_per_state: PositiveInt = 20
    """PPO: updates per state, at most."""
    seconds_per_state: PositiveInt = 15
    """PPO: seconds per state after which no further update begins."""
    states_kept: PositiveInt = 20
    """The newest states, to which one can go back."""
    idle_minutes: PositiveInt = 30
    """Minutes without a choice after which it stops by itself."""
    feedback_epochs: PositiveInt = RewardArguments.feedback_epochs
    """Reward model: passes over all choices for each state."""
    feedback_prompts: PositiveInt = 64
    """Reward model: prompts to which the base model answers four times for each state; what the choices say of these
    answers is learned as well."""
    reward_learning_rate: LearningRate = RewardArguments.learning_rate
    """Reward model: peak learning rate, decayed linearly to zero within each state."""
    learning_rate: Fraction = 6e-4
    """PPO: learning rate; twice that of `ppo`, since there are few updates."""
    kl_coef: Coefficient = PPOArguments.kl_coef
    """PPO: weight of the KL penalty, in score units per nat; higher keeps the policy closer to the base model."""
    per_device_train_batch_size: BatchSize = PPOArguments.per_device_train_batch_size
    """PPO: responses per update."""

    def check(self) -> None:
        """Check all fields, also as the settings of both trainings."""
        super().check()
        self.reward_arguments(None)
        self.ppo_arguments(None)

    def reward_arguments(self, output_dir: Path | None, number: int = 0) -> RewardArguments:
        """The reward model's settings, for the state of this number."""
        return RewardArguments(
            **self._data(),
            output_dir=str(output_dir),
            seed=self.seed + number,
            feedback=self.store,
            feedback_only=True,
            feedback_epochs=self.feedback_epochs,
            feedback_prompts=self.feedback_prompts,
            learning_rate=self.reward_learning_rate,
        )

    def ppo_arguments(self, output_dir: Path | None) -> PPOArguments:
        """PPO's settings."""
        return PPOArguments(
            **self._data(),
            output_dir=str(output_dir),
            seed=self.seed,
            prompt_words=self.prompt_words,
            max_prompt_length=self.max_prompt_length,
            response_length=self.response_length,
            temperature=self.temperature,
            learning_rate=self.learning_rate,
            kl_coef=self.kl_coef,
            per_device_train_batch_size=self.per_device_train_batch_size,
            ceiling_samples=0,
            num_sample_generations=0,
        )

    def _data(self) -> dict[str, object]:
        """The model and the data, for both."""
        return {
            "model_name_or_path": self.model_name_or_path,
            "dataset_name": self.dataset_name,
            "chat_template_kwargs": self.chat_template_kwargs,
            "as_conversations": self.as_conversations,
            **{f"{name}_column": column for name, column in self.columns.items()},
        }
