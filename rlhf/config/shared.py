"""What the settings of several commands share."""

import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from rlhf.config.checking import (
    BadInput,
    BatchSize,
    Fraction,
    Int,
    Keywords,
    LearningRate,
    NonNegativeInt,
    PathOrName,
    PositiveInt,
    Resume,
    Settings,
    Steps,
    Text,
)


ASSETS = Path(__file__).resolve().parents[2] / "assets"
EVERYDAY = "everyday"
"""Name of the embedded default, accepted wherever a model or a data set is asked for."""


UPLOADED = "uploaded"
"""Folder of a run with the data that a person uploaded for it."""


def name_of_data(dataset_name: str) -> str:
    """What people call a data set: an uploaded file by its own name, all else as the settings do."""
    path = Path(dataset_name)
    return path.name if path.parent.name == UPLOADED else dataset_name


def check_room(response_length: int, model: str, folder: Path | None = None) -> None:
    """Check that a response leaves room for a prompt in what a model reads, where that is known before it is loaded.

    Args:
        response_length: in tokens.
        model: as a person named it.
        folder: where it lies, if that is not the folder of this name.

    Raises:
        BadInput: it does not.
    """
    file = (folder or (ASSETS / "base" if model == EVERYDAY else Path(model))) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        reads = int(config.get("max_position_embeddings") or config["n_positions"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if response_length >= reads:
        raise BadInput(
            f"response_length must be at most {reads - 1:,}: {model} reads {reads:,} tokens, and {response_length:,} "
            "leaves no room for a prompt.",
            field="response_length",
        )


@dataclass
class ModelSettings(Settings):
    """How weights are loaded and which of them are trained, under the names of TRL's ModelConfig."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """"bfloat16" computes in bfloat16; trained weights stay in float32, LoRA's frozen ones are kept in bfloat16."""
    use_peft: bool = False
    """Train LoRA adapters instead of all weights (needs PEFT); they are merged into the saved model."""
    lora_r: Annotated[PositiveInt, Field(le=4096)] = 16
    """LoRA: rank of the adapters."""
    lora_alpha: PositiveInt = 32
    """LoRA: the adapters' output is multiplied by lora_alpha / lora_r."""
    lora_dropout: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """LoRA: dropout before the adapters in reward training; PPO uses none."""
    lora_target_modules: str = "all-linear"
    """LoRA: layers that get adapters: all-linear, or their names separated by commas."""


@dataclass
class TrackerSettings(Settings):
    """Where the curves go beside the run's own directory."""

    report_to: Literal["trackio", "wandb", "tensorboard"] | None = None
    """Also log to this tracker, which must be installed; TensorBoard and W&B write into the run, W&B offline unless
    WANDB_MODE says otherwise."""

    def check(self) -> None:
        """Check all fields, and that the tracker is installed."""
        super().check()
        try:
            if self.report_to:
                metadata.version(self.report_to)
        except metadata.PackageNotFoundError:
            raise BadInput(
                f"report_to {self.report_to} needs a package that is not installed: pip install {self.report_to}",
                field="report_to",
            ) from None


@dataclass
class SavingSettings(Settings):
    """What a training needs to go on after it was stopped or killed."""

    save_steps: NonNegativeInt = 0
    """Steps (PPO: updates) between checkpoints; 0 keeps one only of a training that is stopped."""
    save_total_limit: PositiveInt | None = 2
    """Checkpoints that are kept, the newest ones; none keeps all."""
    resume_from_checkpoint: Resume | None = None
    """true goes on with the run in output_dir, or starts it if there is nothing yet; a checkpoint folder, or a run's
    directory for its newest one, is gone on from in a new run."""


@dataclass
class GoOnSettings(Settings):
    """Of a run with others inside."""

    resume_from_checkpoint: bool = False
    """Go on with the run in output_dir where it was, or start it if there is nothing yet."""


@dataclass
class TemplateSettings(Settings):
    """How conversations are written, for every command that reads them."""

    chat_template_kwargs: Keywords | None = None
    """Given to the model's chat template, such as enable_thinking=false; the same for its reward model and for PPO."""


@dataclass
class ColumnSettings(Settings):
    """What a data set calls its columns."""

    prompt_column: Text = "prompt"
    """Column that holds the prompts; in pairs without one, the prompt is what both answers begin with."""
    chosen_column: Text = "chosen"
    """Column of preference pairs that holds the better answers."""
    rejected_column: Text = "rejected"
    """Column of preference pairs that holds the worse answers."""
    as_conversations: bool = False
    """Read texts as what a user says and an assistant answers, in the chat template of an instruction-tuned model."""

    @property
    def columns(self) -> dict[str, str]:
        """Prompt, chosen and rejected -> what the data set calls these columns."""
        return {"prompt": self.prompt_column, "chosen": self.chosen_column, "rejected": self.rejected_column}


@dataclass
class PromptSettings(TemplateSettings, ColumnSettings):
    """Which prompts of a data set are used."""

    prompt_words: PositiveInt | None = None
    """Use only the first N words of each text as the prompt; by default the whole text."""
    max_prompt_length: PositiveInt | None = None
    """Leave out prompts of more tokens than this; prompts that leave no room for the response are always left out."""


@dataclass
class PairTrainingSettings(SavingSettings, ModelSettings, TemplateSettings, ColumnSettings, TrackerSettings):
    """How TRL's trainers learn from preference pairs: what `reward` and `dpo` share."""

    model_name_or_path: PathOrName = EVERYDAY
    """Model to start from: "everyday", a run directory, a folder or a Hub name."""
    dataset_name: PathOrName = EVERYDAY
    """Preference pairs in any format that TRL documents: "everyday", a local file (JSON, JSONL, CSV, TSV,
    Parquet, gzipped or not), a folder, or a Hub name; `name:config` picks a configuration."""
    output_dir: PathOrName | None = None
    """Run directory; by default a new one under runs/."""
    learning_rate: LearningRate = 5e-4
    """Peak learning rate of AdamW, decayed linearly to zero."""
    num_train_epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Passes over the training pairs."""
    max_steps: Steps = -1
    """Optimizer steps; -1 leaves it to num_train_epochs."""
    per_device_train_batch_size: BatchSize = 32
    """Pairs per step and process."""
    per_device_eval_batch_size: BatchSize = 128
    """Pairs per batch when evaluating."""
    max_length: Annotated[Int, Field(ge=8)] = 128
    """Leave out pairs with a text of more tokens than this, as TRL does."""
    warmup_ratio: Fraction = 0.05
    """Fraction of the steps in which the learning rate rises."""
    weight_decay: Fraction = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this norm if theirs is larger; 0 leaves them as they are."""
    eval_steps: PositiveInt = 100
    """Steps between evaluations on held-out pairs."""
    logging_steps: PositiveInt = 5
    """Steps between points on the curves."""
    seed: NonNegativeInt = 0
    """Seed of what is new in the model and of the order of pairs."""
