"""Settings of the commands that run others in a row: the whole demo, and a KL sweep."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rlhf.config.ceiling import CeilingSettings
from rlhf.config.checking import (
    BadInput,
    BatchSize,
    Coefficient,
    Coefficients,
    Fraction,
    Int,
    LearningRate,
    NonNegativeInt,
    Passes,
    PathOrName,
    PositiveInt,
    Steps,
    Temperature,
    Words,
)
from rlhf.config.compare import CompareArguments
from rlhf.config.ppo import PPOArguments
from rlhf.config.reward import FeedbackSettings, RewardArguments
from rlhf.config.rewards import RewardFuncSettings
from rlhf.config.shared import (
    EVERYDAY,
    GoOnSettings,
    ModelSettings,
    PromptSettings,
    SavingSettings,
    TemplateSettings,
    TrackerSettings,
)


@dataclass
class SweepArguments(GoOnSettings, RewardFuncSettings, CeilingSettings, TemplateSettings):
    """Settings of `python -m rlhf sweep`: PPO at several kl_coef values, to find over-optimisation."""

    reward_model_path: PathOrName | None = None
    """Reward model: a reward run, a demo run, a folder or a Hub name."""
    reward_label: str | None = None
    """Of a reward model with two labels the good one; by default the one that is called positive or good."""
    model_name_or_path: PathOrName = EVERYDAY
    """Model to start from, and the base of the comparison."""
    dataset_name: PathOrName = EVERYDAY
    """Prompts: "everyday", a local file or a Hub name."""
    output_dir: PathOrName | None = None
    """Run directory; by default a new one under runs/."""
    kl_coefs: Coefficients = field(default_factory=lambda: ["0", "0.05", "0.1", "0.3"])
    """Weights of the KL penalty, in score units per nat; one run each."""
    seeds: Annotated[PositiveInt, Field(le=100)] = 1
    """Runs per kl_coef value, each with another seed."""
    total_episodes: PositiveInt = PPOArguments.total_episodes
    """Responses per run."""
    checkpoints: Annotated[PositiveInt, Field(le=100)] = 4
    """Evenly spaced checkpoints per run to compare."""
    best_of: Words = field(default_factory=lambda: ["4", "16"])
    """Values of n for the best-of-n baselines."""
    num_prompts: Annotated[Int, Field(ge=2, le=100_000)] = 128
    """Test prompts of the comparison."""
    samples: Annotated[PositiveInt, Field(le=64)] = 2
    """Answers per model and prompt."""
    seed: NonNegativeInt = 0
    """Seed of the first run."""

    def check(self) -> None:
        """Check all fields, also as the settings of each run."""
        super().check()
        if self.reward_model_path is None and not self.reward_funcs:
            raise BadInput(
                "A sweep needs a reward model or function: give --reward_model_path, for example a demo's directory, "
                "or --reward_funcs.",
                field="reward_model_path",
            )
        names = [f"{float(kl_coef):g}" for kl_coef in self.kl_coefs]
        for name in names:
            if names.count(name) > 1:
                raise BadInput(f"kl_coefs names {name} twice; the runs of a sweep differ in it.", field="kl_coefs")
        for count in self.best_of:
            if not (count.isdecimal() and 2 <= int(count) <= 1024) or self.best_of.count(count) > 1:
                raise BadInput(
                    f"best_of must be different whole numbers from 2 to 1024, not {' '.join(self.best_of)}.",
                    field="best_of",
                )
        self.ppo_arguments(float(self.kl_coefs[0]), self.seed, None)

    @property
    def batch_size(self) -> int:
        """Responses per update."""
        return PPOArguments.per_device_train_batch_size

    def ppo_arguments(
        self, kl_coef: float, seed: int, output_dir: Path | None, ceiling_samples: int = 0
    ) -> PPOArguments:
        """PPO's settings of one run."""
        updates = -(-self.total_episodes // self.batch_size)
        return PPOArguments(
            model_name_or_path=self.model_name_or_path,
            reward_model_path=self.reward_model_path,
            reward_label=self.reward_label,
            reward_funcs=self.reward_funcs,
            dataset_name=self.dataset_name,
            chat_template_kwargs=self.chat_template_kwargs,
            output_dir=str(output_dir),
            total_episodes=self.total_episodes,
            save_steps=max(1, updates // self.checkpoints),
            save_total_limit=None,
            resume_from_checkpoint=self.resume_from_checkpoint,
            num_sample_generations=0,
            kl_coef=kl_coef,
            seed=seed,
            ceiling_samples=ceiling_samples,
            ceiling_prompts=self.ceiling_prompts,
        )

    def compare_arguments(self, points: dict[str, dict], output_dir: Path) -> CompareArguments:
        """The comparison of all checkpoints."""
        return CompareArguments(
            models=[
                *(f"{name}={point['path']}" for name, point in points.items()),
                *map("best-of-{}".format, self.best_of),
            ],
            base_model_name_or_path=self.model_name_or_path,
            reward_model_path=self.reward_model_path,
            reward_label=self.reward_label,
            reward_funcs=self.reward_funcs,
            dataset_name=self.dataset_name,
            chat_template_kwargs=self.chat_template_kwargs,
            output_dir=str(output_dir),
            resume_from_checkpoint=self.resume_from_checkpoint,
            num_prompts=self.num_prompts,
            samples=self.samples,
            seed=self.seed,
            ceiling_samples=self.ceiling_samples,
            ceiling_prompts=self.ceiling_prompts,
        )


FROM_CHOICES = {"num_train_epochs": 3, "reward_batch_size": 8, "reward_learning_rate": 1e-3}
"""What suits a demo of the embedded model that learns from people's choices alone: of a thousand pairs more and larger
steps than of nine thousand."""


@dataclass
class DemoArguments(
    GoOnSettings,
    SavingSettings,
    FeedbackSettings,
    RewardFuncSettings,
    CeilingSettings,
    ModelSettings,
    PromptSettings,
    TrackerSettings,
):
    """Settings of `python -m rlhf demo`: reward model, PPO and comparison in a row."""

    output_dir: PathOrName | None = None
    """Run directory; by default a new one under runs/."""
    model_name_or_path: PathOrName = EVERYDAY
    """Model to start from, and the base of the comparison: "everyday", a run directory, a folder or a Hub name."""
    reward_model_path: PathOrName | None = None
    """Reward model to use instead of training one; none is trained either where there are reward_funcs."""
    reward_label: str | None = None
    """Of a reward model with two labels the good one; by default the one that is called positive or good."""
    dataset_name: PathOrName = EVERYDAY
    """Preference pairs and prompts: "everyday", a local file or a Hub name."""
    total_episodes: PositiveInt = PPOArguments.total_episodes
    """PPO: responses to sample and learn from in all."""
    kl_coef: Coefficient = PPOArguments.kl_coef
    """PPO: weight of the KL penalty, in score units per nat; higher keeps the policy closer to the base model."""
    learning_rate: Fraction = PPOArguments.learning_rate
    """PPO: peak learning rate, decayed linearly to zero."""
    per_device_train_batch_size: BatchSize = PPOArguments.per_device_train_batch_size
    """PPO: responses per forward pass; an update uses gradient_accumulation_steps times as many."""
    gradient_accumulation_steps: BatchSize = PPOArguments.gradient_accumulation_steps
    """PPO: forward passes per update; it learns from this many times per_device_train_batch_size responses."""
    num_ppo_epochs: Passes = PPOArguments.num_ppo_epochs
    """PPO: passes over the responses of one update."""
    num_mini_batches: PositiveInt = PPOArguments.num_mini_batches
    """PPO: optimizer steps per epoch."""
    response_length: PositiveInt = PPOArguments.response_length
    """PPO and comparison: longest response in tokens."""
    advantage_estimator: Literal["gae", "rloo", "grpo", "reinforce++"] = PPOArguments.advantage_estimator
    """PPO: what an answer is compared with: a critic's guess (gae), the other answers to its prompt (rloo, grpo), or
    the mean of the update (reinforce++)."""
    num_generations: PositiveInt = PPOArguments.num_generations
    """PPO: responses per prompt in an update."""
    missing_eos_penalty: Coefficient | None = PPOArguments.missing_eos_penalty
    """PPO: subtracted from the score of a response cut off at the length limit; none for no penalty."""
    temperature: Temperature = PPOArguments.temperature
    """PPO and comparison: sampling temperature."""
    reward_learning_rate: LearningRate = RewardArguments.learning_rate
    """Reward model: peak learning rate, decayed linearly to zero."""
    reward_max_steps: Steps = RewardArguments.max_steps
    """Reward model: optimizer steps; -1 leaves it to num_train_epochs."""
    reward_batch_size: BatchSize = RewardArguments.per_device_train_batch_size
    """Reward model: pairs per step."""
    num_train_epochs: Annotated[float, Field(gt=0, le=1000)] = RewardArguments.num_train_epochs
    """Reward model: passes over the training pairs."""
    max_length: Annotated[Int, Field(ge=8)] = RewardArguments.max_length
    """Reward model: leave out pairs with a text of more tokens than this."""
    num_prompts: Annotated[Int, Field(ge=2, le=100_000)] = CompareArguments.num_prompts
    """Comparison: test prompts; half as many more are about unseen topics."""
    samples: Annotated[PositiveInt, Field(le=64)] = CompareArguments.samples
    """Comparison: answers per model and prompt."""
    seeds: Annotated[PositiveInt, Field(le=100)] = CompareArguments.seeds
    """Comparison: PPO training runs in all, each with another seed."""
    allow_chance_reward: bool = PPOArguments.allow_chance_reward
    """PPO: continue even if the reward model is not better than chance."""
    seed: NonNegativeInt = 0
    """Seed of all three steps."""

    def check(self) -> None:
        """Check all fields, also as the settings of each step."""
        super().check()
        self.reward_arguments(None)
        self.ppo_arguments(None, None)
        self.compare_arguments(None, None, None)

    def _hand_down(self, config: type, **others: object) -> object:
        """The settings of one step: those of the same name here, and others."""
        own = {field.name for field in dataclasses.fields(self)}
        same = {field.name: getattr(self, field.name) for field in dataclasses.fields(config) if field.name in own}
        return config(**{**same, **others})

    def reward_arguments(self, output_dir: Path | None) -> RewardArguments:
        """The reward model's settings within this demo."""
        return self._hand_down(
            RewardArguments,
            output_dir=str(output_dir),
            learning_rate=self.reward_learning_rate,
            max_steps=self.reward_max_steps,
            per_device_train_batch_size=self.reward_batch_size,
            per_device_eval_batch_size=min(4 * self.reward_batch_size, 65_536),
        )

    def ppo_arguments(self, reward_dir: Path | None, output_dir: Path | None) -> PPOArguments:
        """PPO's settings within this demo."""
        return self._hand_down(
            PPOArguments,
            output_dir=str(output_dir),
            reward_model_path=self._reward_model(reward_dir),
            # The few choices that are held out cannot tell a good reward model from chance.
            allow_chance_reward=self.allow_chance_reward or self.feedback is not None,
        )

    def compare_arguments(
        self, reward_dir: Path | None, ppo_dir: Path | None, output_dir: Path | None
    ) -> CompareArguments:
        """The comparison's settings within this demo."""
        return self._hand_down(
            CompareArguments,
            models=["base", f"ppo={ppo_dir}"],
            base_model_name_or_path=self.model_name_or_path,
            output_dir=str(output_dir),
            reward_model_path=self._reward_model(reward_dir),
        )

    def _reward_model(self, trained: Path | None) -> str | None:
        """The one that is given or that the demo trains; None if functions do without."""
        return self.reward_model_path or (None if self.reward_funcs else str(trained))
