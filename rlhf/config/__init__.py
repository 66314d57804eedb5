"""Settings of every command, explained and checked; a recipe holds those of a whole demo under one name."""

from rlhf.config.ceiling import CeilingArguments, CeilingSettings
from rlhf.config.checking import BadInput, Diverged, FailedElsewhere, Settings, build, default_of, field_docs, typed
from rlhf.config.compare import CompareArguments
from rlhf.config.dpo import DPOArguments
from rlhf.config.live import LiveArguments
from rlhf.config.pipelines import DemoArguments, SweepArguments
from rlhf.config.ppo import PPOArguments, PPOSettings
from rlhf.config.reward import RewardArguments
from rlhf.config.shared import (
    ASSETS,
    EVERYDAY,
    UPLOADED,
    ColumnSettings,
    ModelSettings,
    PairTrainingSettings,
    PromptSettings,
    name_of_data,
)
from rlhf.config.tools import (
    BenchArguments,
    FeedbackArguments,
    PreferencesConfig,
    PretrainConfig,
    PreviewArguments,
    PushArguments,
)


__all__ = [
    "ASSETS",
    "EVERYDAY",
    "UPLOADED",
    "BadInput",
    "BenchArguments",
    "CeilingArguments",
    "CeilingSettings",
    "ColumnSettings",
    "CompareArguments",
    "DPOArguments",
    "DemoArguments",
    "Diverged",
    "FailedElsewhere",
    "FeedbackArguments",
    "LiveArguments",
    "ModelSettings",
    "PPOArguments",
    "PPOSettings",
    "PairTrainingSettings",
    "PreferencesConfig",
    "PretrainConfig",
    "PreviewArguments",
    "PromptSettings",
    "PushArguments",
    "RewardArguments",
    "Settings",
    "SweepArguments",
    "build",
    "default_of",
    "field_docs",
    "name_of_data",
    "typed",
]
