"""Settings of the ceiling: the best possible score at every KL."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveFloat

from rlhf.config.checking import BadInput, Int, NonNegativeInt, PathOrName, PositiveInt, Settings, Temperature
from rlhf.config.rewards import RewardFuncSettings
from rlhf.config.shared import EVERYDAY, PromptSettings, check_room


CeilingSamples = Annotated[Int, Field(ge=2, le=16_384)]


@dataclass
class CeilingSettings(Settings):
    """How the commands that train or compare measure the ceiling beside their work."""

    ceiling_samples: Annotated[NonNegativeInt, Field(le=16_384)] = 64
    """Base answers per prompt from which the best possible score at every KL is estimated; 0 for no estimate."""
    ceiling_prompts: Annotated[Int, Field(ge=2)] = 96
    """Held-out prompts, evenly spaced, that this estimate is made on."""

    def check(self) -> None:
        """Check all fields, and that there is more than one answer to tilt."""
        super().check()
        if self.ceiling_samples == 1:
            raise BadInput(
                "ceiling_samples must be 0 or at least 2: one answer has nothing to be better than.",
                field="ceiling_samples",
            )


@dataclass
class CeilingArguments(RewardFuncSettings, PromptSettings):
    """Settings of `python -m rlhf ceiling`: the best possible score at every KL, from answers of the base alone."""

    model_name_or_path: PathOrName = EVERYDAY
    """The base: "everyday", a run directory, a folder or a Hub name."""
    reward_model_path: PathOrName | None = None
    """Reward model: a reward run, a demo run, a folder or a Hub name."""
    reward_label: str | None = None
    """Of a reward model with two labels the good one; by default the one that is called positive or good."""
    dataset_name: PathOrName = EVERYDAY
    """Test prompts, alone or in preference pairs: "everyday", a local file or a Hub name."""
    output_dir: PathOrName | None = None
    """Run directory; by default a new one under runs/."""
    num_prompts: Annotated[Int, Field(ge=2, le=100_000)] = 96
    """Test prompts, evenly spaced."""
    samples: CeilingSamples = 128
    """Answers per prompt to begin with."""
    max_samples: CeilingSamples = 1024
    """They are doubled, up to this many, until that moves no gain up to settle_kl by more than its interval."""
    settle_kl: PositiveFloat = 3.0
    """KL in nats per answer up to which the estimate shall stand still."""
    response_length: PositiveInt = 64
    """Longest response in tokens."""
    temperature: Temperature = 0.7
    """Sampling temperature."""
    seed: NonNegativeInt = 0
    """Seed of the sampling."""

    def check(self) -> None:
        """Check all fields, and that there is something to score with."""
        super().check()
        check_room(self.response_length, self.model_name_or_path)
        if self.reward_model_path is None and not self.reward_funcs:
            raise BadInput(
                "A ceiling needs a reward model or function: give --reward_model_path, for example a demo's "
                "directory, or --reward_funcs.",
                field="reward_model_path",
            )
