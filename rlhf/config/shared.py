"""What the settings of several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rlhf.config.checking import PositiveInt, Settings


ASSETS = Path(__file__).resolve().parents[2] / "assets"
EVERYDAY = "everyday"
"""Name of the embedded default, accepted wherever a model or a data set is asked for."""


@dataclass
class ModelSettings(Settings):
    """How weights are loaded and which of them are trained, under the names of TRL's ModelConfig."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """"bfloat16" computes in bfloat16; trained weights stay in float32, LoRA's frozen ones are kept in bfloat16."""
    use_peft: bool = False
    """Train LoRA adapters instead of all weights (needs PEFT); they are merged into the saved model."""
    lora_r: PositiveInt = 16
    """LoRA: rank of the adapters."""
    lora_alpha: PositiveInt = 32
    """LoRA: the adapters' output is multiplied by lora_alpha / lora_r."""
    lora_dropout: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """LoRA: dropout before the adapters in reward training; PPO uses none."""
    lora_target_modules: str = "all-linear"
    """LoRA: layers that get adapters: all-linear, or their names separated by commas."""


@dataclass
class PromptSettings(Settings):
    """Which prompts of a data set are used."""

    prompt_column: str = "prompt"
    """Column of the data set that holds the prompts."""
    prompt_words: PositiveInt | None = None
    """Use only the first N words of each text as the prompt; by default the whole text."""
    max_prompt_length: PositiveInt | None = None
    """Leave out prompts of more tokens than this; prompts that leave no room for the response are always left out."""
