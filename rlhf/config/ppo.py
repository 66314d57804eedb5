"""Settings of PPO."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from rlhf.config.ceiling import CeilingSettings
from rlhf.config.checking import (
    BadInput,
    BatchSize,
    Coefficient,
    Fraction,
    LearningRate,
    NonNegativeInt,
    Passes,
    PathOrName,
    PositiveInt,
    Settings,
    Steps,
    Temperature,
)
from rlhf.config.rewards import RewardFuncSettings
from rlhf.config.shared import (
    EVERYDAY,
    ModelSettings,
    PromptSettings,
    SavingSettings,
    TrackerSettings,
    check_room,
)


@dataclass
class PPOSettings(Settings):
    """The settings of PPO, under TRL's names and with the defaults of TRL 1.12 unless a line says otherwise.

    `rlhf.ppo.PPOConfig` joins these with Transformers' TrainingArguments, `PPOArguments` with what a command needs.
    """

    learning_rate: Fraction = 3e-6
    """Peak learning rate of Adam, decayed linearly to zero."""
    total_episodes: PositiveInt | None = None
    """Responses to sample and learn from in all; by default num_train_epochs decides."""
    per_device_train_batch_size: BatchSize = 64
    """Responses per process and forward pass; an update uses gradient_accumulation_steps times as many."""
    gradient_accumulation_steps: BatchSize = 1
    """Forward passes per update: it learns from this many times per_device_train_batch_size responses."""
    num_ppo_epochs: Passes = 4
    """Passes over the responses of one update."""
    num_mini_batches: PositiveInt = 1
    """Optimizer steps per epoch: the responses are split into this many mini-batches."""
    num_generations: PositiveInt = 1
    """Responses per prompt in an update."""
    response_length: PositiveInt = 53
    """Longest response in tokens."""
    stop_token: Literal["eos"] | None = "eos"
    """Token that ends a response: eos, the tokenizer's own, or none for responses of full length (TRL's default)."""
    temperature: Temperature = 0.7
    """Sampling temperature; PPO optimises the policy at this temperature."""
    kl_coef: Coefficient = 0.05
    """Weight of the KL penalty, in score units per nat; higher keeps the policy closer to the base model."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """"adaptive" adjusts kl_coef to bring the KL per response to kl_target."""
    kl_target: PositiveFloat = 6.0
    """KL in nats per response that the adaptive controller aims at."""
    kl_horizon: PositiveInt = 10_000
    """Responses over which the adaptive controller changes kl_coef by at most a fifth; smaller reacts faster."""
    cliprange: PositiveFloat = 0.2
    """How far the probability ratio may move from 1 before the policy loss is clipped."""
    cliprange_high: PositiveFloat | None = None
    """How far the ratio may rise above 1; by default as far as cliprange."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Dual clipping: a negative advantage costs at most this multiple of itself; off by default."""
    vf_coef: Coefficient = 0.1
    """Weight of the value loss."""
    cliprange_value: PositiveFloat = 0.2
    """How far a value may move in one update before its loss is clipped, in score units."""
    entropy_coef: Coefficient = 0.0
    """Weight of an entropy bonus."""
    advantage_estimator: Literal["gae", "rloo", "grpo", "reinforce++"] = "gae"
    """What an answer is compared with: a critic's guess (gae), the other answers to its prompt (rloo, grpo), or the
    mean of the update (reinforce++)."""
    gamma: Fraction = 1.0
    """Discount factor."""
    lam: Fraction = 0.95
    """Lambda of generalised advantage estimation (GAE)."""
    normalize_advantages: bool = True
    """Normalise the advantages of an update to mean 0 and variance 1."""
    whiten_rewards: bool = False
    """Scale the rewards of an update to variance 1; shifts the optimum when lengths vary, so best left off."""
    early_stopping: bool = False
    """End an update early once the policy is 1.5 times target_kl away from where the update began."""
    target_kl: PositiveFloat = 0.1
    """KL in nats per token, within one update, that early_stopping is based on."""
    missing_eos_penalty: Coefficient | None = None
    """Subtracted from the score of a response cut off at the length limit; none for no penalty."""
    mask_truncated_completions: bool = False
    """Learn nothing from responses cut off at the length limit."""
    reward_normalization: Literal["none", "reference", "running"] = "none"
    """Scale scores to mean 0 and variance 1, over the base model's ("reference") or over all so far ("running")."""
    reward_clip_range: PositiveFloat | None = None
    """Clip scores to plus or minus this after normalisation; off by default."""
    value_head: Literal["shared", "separate"] = "shared"
    """Critic: a value head on the policy's own trunk ("shared") or a model of its own ("separate"; slower)."""
    value_learning_rate: LearningRate | None = None
    """Learning rate of the critic; by default the policy's, times ten for a value head, which starts at zero."""
    value_warmup_steps: NonNegativeInt = 0
    """Updates at the start in which only the critic learns."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm if theirs is larger."""
    adam_epsilon: PositiveFloat = 1e-5
    """Epsilon of Adam; the default is that of OpenAI's PPO."""
    num_sample_generations: NonNegativeInt = 10
    """How many times the sample prompts are answered during the run."""
    max_steps: Steps = -1
    """PPO updates; -1 leaves it to total_episodes."""
    seed: NonNegativeInt = 0
    """Seed of the sampling and of the order of prompts."""

    def check(self) -> None:
        """Check all fields, and that an update can be divided as they say."""
        super().check()
        for name in ("num_mini_batches", "num_generations"):
            if self.local_batch_size % getattr(self, name):
                raise BadInput(
                    f"{name} ({getattr(self, name)}) must divide the responses of an update ({self.local_batch_size}, "
                    "which is per_device_train_batch_size times gradient_accumulation_steps).",
                    field=name,
                )
        if self.total_episodes is not None and self.total_episodes < self.local_batch_size:
            raise BadInput(
                f"total_episodes ({self.total_episodes}) must be at least per_device_train_batch_size times "
                f"gradient_accumulation_steps ({self.local_batch_size}): one update needs that many.",
                field="total_episodes",
            )
        if self.advantage_estimator in ("rloo", "grpo") and self.num_generations < 2:
            raise BadInput(
                f"advantage_estimator {self.advantage_estimator!r} compares several answers to one prompt; set "
                "num_generations to 2 or more.",
                field="num_generations",
            )
        if self.advantage_estimator != "gae" and self.value_head == "separate":
            raise BadInput(
                "Only the advantage_estimator 'gae' has a critic; set it, or leave value_head at 'shared'.",
                field="value_head",
            )
        if self.kl_controller == "adaptive" and self.kl_coef == 0:
            raise BadInput(
                "The adaptive controller multiplies kl_coef, so that must be above 0 to begin with.", field="kl_coef"
            )

    @property
    def local_batch_size(self) -> int:
        """Responses per update and process."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


@dataclass
class PPOArguments(
    SavingSettings, RewardFuncSettings, CeilingSettings, PPOSettings, ModelSettings, PromptSettings, TrackerSettings
):
    """Settings of `python -m rlhf ppo`: what to train on what, with defaults that fit the embedded world."""

    model_name_or_path: PathOrName = EVERYDAY
    """Policy to start from, and the reference: "everyday", a run directory, a folder or a Hub name."""
    reward_model_path: PathOrName | None = None
    """Reward model: a reward run, a demo run, a folder or a Hub name."""
    reward_label: str | None = None
    """Of a reward model with two labels the good one; by default the one that is called positive or good."""
    dataset_name: PathOrName = EVERYDAY
    """Prompts, alone or in preference pairs, as texts or conversations: "everyday", a local file or a Hub name."""
    output_dir: PathOrName | None = None
    """Run directory; by default a new one under runs/."""
    learning_rate: Fraction = 3e-4
    """Peak learning rate of Adam, decayed linearly to zero."""
    total_episodes: PositiveInt = 12_800
    """Responses to sample and learn from in all."""
    num_ppo_epochs: Passes = 1
    """Passes over the responses of one update."""
    num_generations: PositiveInt = 4
    """Responses per prompt in an update."""
    advantage_estimator: Literal["gae", "rloo", "grpo", "reinforce++"] = "rloo"
    """What an answer is compared with: a critic's guess (gae), the other answers to its prompt (rloo, grpo), or the
    mean of the update (reinforce++)."""
    kl_coef: Coefficient = 0.12
    """Weight of the KL penalty, in score units per nat; higher keeps the policy closer to the base model."""
    vf_coef: Coefficient = 0.02
    """Weight of the value loss; on a shared trunk its gradient competes with the policy's."""
    lam: Fraction = 1.0
    """Lambda of generalised advantage estimation (GAE); at 1 each token is credited with the full return, whatever the
    critic predicts."""
    response_length: PositiveInt = 64
    """Longest response in tokens."""
    missing_eos_penalty: Coefficient | None = 1.0
    """Subtracted from the score of a response cut off at the length limit; none for no penalty."""
    reward_normalization: Literal["none", "reference", "running"] = "reference"
    """Scale scores to mean 0 and variance 1, over the base model's ("reference") or over all so far ("running")."""
    eval_steps: NonNegativeInt = 0
    """Updates between evaluations on held-out prompts, policy against base model; 0 for none."""
    allow_chance_reward: bool = False
    """Continue even if the reward model is not better than chance; its scores then mean nothing."""

    def check(self) -> None:
        """Check all fields, and that the model can read a prompt beside the response."""
        super().check()
        check_room(self.response_length, self.model_name_or_path)
