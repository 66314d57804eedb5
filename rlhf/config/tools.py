"""Settings of the commands that make no run."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from rlhf.config.checking import (
    BadInput,
    BatchSize,
    Counts,
    Int,
    LearningRate,
    NonNegativeInt,
    Passes,
    PathOrName,
    PositiveInt,
    Settings,
    Temperature,
)
from rlhf.config.shared import ASSETS, EVERYDAY, ColumnSettings, PromptSettings, TemplateSettings


@dataclass
class PretrainConfig(Settings):
    """Settings of `python -m rlhf pretrain`, which makes the embedded base model again."""

    output_dir: PathOrName = str(ASSETS / "base")
    """Folder for the tokenizer and the model."""
    num_dialogs: Annotated[Int, Field(ge=100)] = 200_000
    """Dialogs to generate; each is different and is read once."""
    listening_steps: PositiveInt = 1800
    """Steps of a second, contrastive pass, which shows each question with a fitting and an off-topic answer and trains
    mainly on the asker's reaction."""
    vocab_size: Annotated[Int, Field(ge=300)] = 3072
    """Byte-level BPE tokens, special tokens included."""
    n_embd: PositiveInt = 192
    """Width of the model."""
    n_layer: PositiveInt = 4
    """Transformer blocks."""
    n_head: PositiveInt = 6
    """Attention heads per block."""
    n_positions: PositiveInt = 128
    """Longest text in tokens, prompt and response together."""
    learning_rate: LearningRate = 3e-3
    """Peak learning rate of AdamW (embeddings, norms, biases); a short warm-up, then cosine decay to zero."""
    muon_learning_rate: LearningRate = 0.04
    """Peak learning rate of Muon (the blocks' matrices)."""
    per_device_train_batch_size: BatchSize = 32
    """Dialogs per step."""
    seed: NonNegativeInt = 0
    """Seed of the corpus and of the weights."""


@dataclass
class PreferencesConfig(Settings):
    """Settings of `python -m rlhf preferences`, which makes the embedded preference pairs again."""

    model_name_or_path: PathOrName = EVERYDAY
    """Model that writes both responses of a pair."""
    output_file: PathOrName = str(ASSETS / "preferences.jsonl.gz")
    """File to write: gzipped JSON lines with prompt, chosen and rejected."""
    num_pairs: PositiveInt = 10_000
    """Pairs to collect."""
    temperature: Temperature = 0.7
    """Sampling temperature."""
    response_length: PositiveInt = 64
    """Longest response in tokens."""
    seed: NonNegativeInt = 0
    """Seed of the sampling and of the annotators' noise."""


@dataclass
class PreviewArguments(TemplateSettings, ColumnSettings):
    """Settings of `python -m rlhf preview`: a look at preference pairs before anything is trained on them."""

    dataset_name: PathOrName = EVERYDAY
    """Preference pairs in any format that TRL documents: "everyday", a local file (JSON, JSONL, CSV, TSV,
    Parquet, gzipped or not), a folder, or a Hub name; `name:config` picks a configuration."""
    model_name_or_path: PathOrName | None = None
    """Model whose tokenizer also counts tokens; nothing else of it is loaded."""


@dataclass
class AskingSettings(PromptSettings):
    """Which answers people choose between, and where their choices are kept."""

    store: PathOrName | None = None
    """Folder of the choices; made if there is none."""
    model_name_or_path: PathOrName = EVERYDAY
    """Model that answers: "everyday", a run directory, a folder or a Hub name."""
    dataset_name: PathOrName = EVERYDAY
    """Prompts, alone or in preference pairs, as texts or conversations: "everyday", a local file or a Hub name."""
    temperature: Temperature = 0.7
    """Sampling temperature."""
    response_length: PositiveInt = 64
    """Longest response in tokens."""
    seed: NonNegativeInt = 0
    """Seed of the sampling and of the order of prompts."""

    def check(self) -> None:
        """Check all fields, and that there is a store."""
        super().check()
        if self.store is None:
            raise BadInput("Give --store, the folder of the choices.", field="store")


@dataclass
class FeedbackArguments(AskingSettings):
    """Settings of `python -m rlhf feedback`, by which people, or scripts, choose between two answers."""

    n: PositiveInt = 1
    """Pairs to print."""
    person: Annotated[str, Field(min_length=1, max_length=64)] = "someone"
    """Who chooses: any name, the same each time."""


@dataclass
class BenchArguments(Settings):
    """Settings of `python -m rlhf bench`, most of them for `bench ppo`: PPO's speed, alone or against TRL 1.12."""

    against: Literal["trl"] | None = None
    """"trl" alternates with TRL 1.12's PPOTrainer on the same work."""
    busy: Counts | None = None
    """Numbers of processes that only spin: measures the speed of `ppo` with its defaults by itself and beside so many,
    with threads that wait briefly, as shipped, and with threads that spin, in turn."""
    seconds: PositiveInt = 8
    """With busy: how long each speed is measured, at least."""
    rounds: PositiveInt = 3
    """Repetitions, each with another seed; people of each taste for `bench feedback`."""
    model_name_or_path: PathOrName = EVERYDAY
    """Policy and reference; "random-gpt2" makes a full-size GPT-2 with random weights, and random prompts."""
    reward_model_path: PathOrName | None = None
    """Reward model; by default the example run's."""
    dataset_name: PathOrName = EVERYDAY
    """Prompts: "everyday", a local file or a Hub name."""
    total_episodes: PositiveInt = 2560
    """Responses per run; pairs for `bench reward`."""
    batch_size: BatchSize = 64
    """Responses per update."""
    micro_batch_size: BatchSize = 64
    """Responses per forward pass: TRL's per_device_train_batch_size."""
    num_ppo_epochs: Passes = 4
    """Passes over the responses of one update."""
    learning_rate: LearningRate = 4e-4
    """Peak learning rate, decayed linearly to zero."""
    response_length: PositiveInt = 32
    """Longest response in tokens."""
    bf16: bool = False
    """Compute in bfloat16."""
    use_cpu: bool = False
    """Use the CPU even if there is a GPU."""
    threads: Annotated[NonNegativeInt, Field(le=1024)] = 0
    """CPU threads per run; 0 leaves it to PyTorch."""
    environment: PathOrName = "~/.cache/rlhf-lab/trl-1.12.0"
    """Folder of a Python environment with TRL 1.12, created on first use."""
    json: PathOrName | None = None
    """JSON file to write all numbers to."""
    seed: NonNegativeInt = 0
    """Seed of the first round."""

    def check(self) -> None:
        """Check all fields, and that a batch splits into micro-batches."""
        super().check()
        if self.batch_size % self.micro_batch_size:
            raise BadInput(
                f"micro_batch_size ({self.micro_batch_size}) must divide batch_size ({self.batch_size}).",
                field="micro_batch_size",
            )


@dataclass
class PushArguments(Settings):
    """Settings of `python -m rlhf push RUN`: a run's model with its card, to the Hugging Face Hub."""

    repo_id: str | None = None
    """Name on the Hub, for example your-name/polite-answers; created if there is none."""
    private: bool = False
    """Create it so that only you can see it."""
    what: Literal["policy", "reward"] = "policy"
    """Model of the run to push: "policy", which PPO trained, or "reward", the reward model."""

    def check(self) -> None:
        """Check all fields, and that there is a name that the Hub can take."""
        super().check()
        if not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", self.repo_id or ""):
            raise BadInput(
                "Give --repo_id, the model's name on the Hub, for example your-name/polite-answers.", field="repo_id"
            )
