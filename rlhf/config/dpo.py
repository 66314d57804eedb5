"""Settings of DPO."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveFloat

from rlhf.config.checking import Fraction, Int, LearningRate, NonNegativeInt, PositiveInt
from rlhf.config.shared import EVERYDAY, ModelSettings


@dataclass
class DPOArguments(ModelSettings):
    """Settings of `python -m rlhf dpo`: TRL's DPOTrainer on preference pairs, without a reward model."""

    model_name_or_path: str = EVERYDAY
    """Policy to start from, and the reference: "everyday", a run directory, a folder or a Hub name."""
    dataset_name: str = EVERYDAY
    """Preference pairs in any format that TRL documents: "everyday", a local file (JSONL, gzipped or not, CSV,
    Parquet) or a Hub name."""
    output_dir: str | None = None
    """Run directory; by default a new one under runs/."""
    learning_rate: LearningRate = 3e-4
    """Peak learning rate of AdamW, decayed linearly to zero."""
    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the base model; smaller lets it move further away."""
    num_train_epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Passes over the training pairs; only where max_steps is -1."""
    max_steps: Int = 100
    """Optimizer steps; -1 leaves it to num_train_epochs."""
    per_device_train_batch_size: PositiveInt = 32
    """Pairs per step."""
    per_device_eval_batch_size: PositiveInt = 64
    """Pairs per batch when evaluating."""
    max_length: Annotated[Int, Field(ge=8)] = 128
    """Leave out pairs with a text of more tokens than this."""
    warmup_ratio: Fraction = 0.05
    """Fraction of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm if theirs is larger."""
    eval_steps: PositiveInt = 50
    """Steps between evaluations on held-out pairs."""
    save_steps: NonNegativeInt = 0
    """Steps between checkpoints; 0 saves only the final model."""
    logging_steps: PositiveInt = 5
    """Steps between points on the curves."""
    resume_from_checkpoint: str | None = None
    """Checkpoint folder of an earlier run to resume from."""
    seed: NonNegativeInt = 0
    """Seed of the order of pairs."""
