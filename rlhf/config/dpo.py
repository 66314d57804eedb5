"""Settings of DPO."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from rlhf.config.checking import BatchSize, LearningRate, PathOrName, PositiveInt, Steps
from rlhf.config.shared import EVERYDAY, PairTrainingSettings


@dataclass
class DPOArguments(PairTrainingSettings):
    """Settings of `python -m rlhf dpo`: TRL's DPOTrainer on preference pairs, without a reward model."""

    model_name_or_path: PathOrName = EVERYDAY
    """Policy to start from, and the reference: "everyday", a run directory, a folder or a Hub name."""
    learning_rate: LearningRate = 3e-4
    """Peak learning rate of AdamW, decayed linearly to zero."""
    beta: Annotated[float, Field(gt=0, le=1000)] = 0.1
    """How strongly the policy is held to the base model; smaller lets it move further away."""
    num_train_epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Passes over the training pairs; only where max_steps is -1."""
    max_steps: Steps = 100
    """Optimizer steps; -1 leaves it to num_train_epochs."""
    per_device_eval_batch_size: BatchSize = 64
    """Pairs per batch when evaluating."""
    eval_steps: PositiveInt = 50
    """Steps between evaluations on held-out pairs."""
