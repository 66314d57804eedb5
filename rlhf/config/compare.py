"""Settings of a comparison."""

import os
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from rlhf.config.ceiling import CeilingSettings
from rlhf.config.checking import BadInput, Int, NonNegativeInt, PathOrName, PositiveInt, Words
from rlhf.config.rewards import RewardFuncSettings
from rlhf.config.shared import EVERYDAY, GoOnSettings, PromptSettings, check_room


@dataclass
class CompareArguments(GoOnSettings, RewardFuncSettings, CeilingSettings, PromptSettings):
    """Settings of `python -m rlhf compare`: any number of models on the same test prompts, scored alike."""

    models: Words | None = None
    """Models to compare with the base: NAME=PATH (a PPO, DPO or demo run, a folder or a Hub name), or best-of-N."""
    base_model_name_or_path: PathOrName = EVERYDAY
    """The base: all models are compared with it, and best-of-N samples from it."""
    reward_model_path: PathOrName | None = None
    """Reward model that scores all answers; without it and reward_funcs, what the first run among the models used."""
    reward_label: str | None = None
    """Of a reward model with two labels the good one; by default the one that is called positive or good."""
    dataset_name: PathOrName = EVERYDAY
    """Test prompts, alone or in preference pairs: "everyday", a local file or a Hub name."""
    prompts_file: PathOrName | None = None
    """Your own questions instead, all of them: a text file with one per line, or a table with a column prompt."""
    seeds: Annotated[PositiveInt, Field(le=100)] = 1
    """Training runs per model of PPO or DPO: the run itself, and repetitions with the next seeds."""
    output_dir: PathOrName | None = None
    """Run directory; by default a new one under runs/."""
    num_prompts: Annotated[Int, Field(ge=2, le=100_000)] = 256
    """Test prompts; half as many more are about unseen topics."""
    samples: Annotated[PositiveInt, Field(le=64)] = 4
    """Answers per model and prompt."""
    response_length: PositiveInt = 64
    """Longest response in tokens."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.7
    """Sampling temperature, the same for all models; 0 for the likeliest answers, with the KL at temperature 1."""
    seed: NonNegativeInt = 0
    """Seed of the sampling."""

    def check(self) -> None:
        """Check all fields, that a response leaves room for a prompt, and that every model has a name of its own."""
        super().check()
        check_room(self.response_length, self.base_model_name_or_path)
        names = [self.contender(entry)[0] for entry in self.models or ()]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise BadInput(f"Two models are called {twice.pop()}; give each a name of its own.", field="models")

    @staticmethod
    def contender(entry: str) -> tuple[str, str | None, int]:
        """An entry of `models` as its name, its path (None for the base), and the n of best-of-n (1 for a model)."""
        name, _, path = entry.partition("=")
        if path and name not in ("", "base"):  # another base is a setting of its own
            return name, os.path.expanduser(path), 1
        count = name.removeprefix("best-of-")
        if entry == "base":
            return name, None, 1
        if name.startswith("best-of-") and count.isdecimal() and 2 <= int(count) <= 1024:
            return name, None, int(count)
        raise BadInput(
            f"models takes base, best-of-N with N from 2 to 1024, or NAME=PATH, not {entry!r}.", field="models"
        )
