"""Settings of every command: dataclasses with a docstring after each field, checked when built, strict about names.

The docstring after a field is its help on the command line, its explanation on the page and its line in the README.
"""

import ast
import dataclasses
import inspect
import math
import re
import textwrap
import types
import typing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal


ASSETS = Path(__file__).resolve().parent.parent / "assets"
EVERYDAY = "everyday"
"""Name of the embedded default, accepted wherever a model or a data set is asked for."""


class BadInput(ValueError):
    """Something a person gave that cannot work; the message is one sentence that says what to do."""


class FailedElsewhere(BadInput):
    """Another of several processes has failed, and has said so with this sentence."""


@cache
def field_docs(config: type) -> dict[str, str]:
    """The docstring after each field of a dataclass and of its bases, by field name."""
    docs: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for node, after in zip(body, body[1:], strict=False):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                docs[node.target.id] = " ".join(str(after.value.value).split())
    return docs


def default_of(field: dataclasses.Field) -> object:
    """A field's default, a list made anew."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def convert(config: type, name: str, value: object) -> object:
    """Turn a value from the command line, a YAML file or the page into the type that field `name` declares.

    Raises:
        BadInput: the value is not of that type.
    """
    hint = typing.get_type_hints(config)[name]
    # Python 3.11 makes a `typing.Union` of a Literal and None.
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if value is None or (isinstance(value, str) and value.lower() in ("none", "") and type(None) in options):
        if type(None) in options:
            return None
        raise BadInput(f"{name} needs a value.")
    kind = next(option for option in options if option is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            raise BadInput(f"{name} must be one of {', '.join(typing.get_args(kind))}, not {value!r}.")
        return value
    if typing.get_origin(kind) is list:
        return value.split() if isinstance(value, str) else [str(entry) for entry in value]
    if kind is bool:
        if str(value).lower() not in ("true", "false"):
            raise BadInput(f"{name} must be true or false, not {value!r}.")
        return str(value).lower() == "true"
    return _number(kind, name, value) if kind in (int, float) else str(value)


def _number(kind: type, name: str, value: object) -> float:
    """A finite number of this kind; "2e3" is a whole number too."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (kind is int and (number != int(number) or abs(number) > 1e9)):
        what = "a whole number, at most 1e9" if kind is int else "a number such as 0.0003 or 3e-4"
        raise BadInput(f"{name} must be {what}, not {value!r}.")
    return kind(number)


def build(config: type, values: dict[str, object]) -> object:
    """Build a config from untyped values.

    Raises:
        BadInput: an unknown name, a value of the wrong type, or one out of range.
    """
    known = {field.name for field in dataclasses.fields(config)}
    for name in values:
        if name not in known:
            raise BadInput(f"{name} is not a setting here; the settings are {', '.join(sorted(known))}.")
    return config(**{name: convert(config, name, value) for name, value in values.items()})


def check_range(
    config: object, name: str, *, low: float = float("-inf"), high: float = float("inf"), above: float = float("-inf")
) -> None:
    """Check `low <= value <= high` and `value > above`; None passes.

    Raises:
        BadInput: the value lies outside.
    """
    value = getattr(config, name)
    if value is None or (low <= value <= high and value > above):
        return
    bounds = [f"above {above:g}"] if above != float("-inf") else []
    bounds += [f"at least {low:g}"] if low != float("-inf") else []
    bounds += [f"at most {high:g}"] if high != float("inf") else []
    raise BadInput(f"{name} must be {' and '.join(bounds)}, not {value:g}.")


@dataclass
class PretrainConfig:
    """Settings of `python -m rlhf pretrain`, which makes the embedded base model again."""

    output_dir: str = str(ASSETS / "base")
    """Folder for the tokenizer and the model."""
    num_dialogs: int = 200_000
    """Dialogs to write and read once, each another."""
    listening_steps: int = 1800
    """Steps of the second pass: answers that fit and answers that do not, and what the asker writes back."""
    vocab_size: int = 3072
    """Byte-level BPE tokens, special tokens included."""
    n_embd: int = 192
    """Width of the model."""
    n_layer: int = 4
    """Transformer blocks."""
    n_head: int = 6
    """Attention heads a block."""
    n_positions: int = 128
    """Longest text in tokens, prompt and response together."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW (embeddings, norms, biases); a short warm-up, then a cosine to zero."""
    muon_learning_rate: float = 0.04
    """Peak learning rate of Muon (the blocks' matrices)."""
    per_device_train_batch_size: int = 32
    """Dialogs a step."""
    seed: int = 0
    """Seed of the corpus and of the weights."""

    def __post_init__(self) -> None:
        check_range(self, "num_dialogs", low=100)
        check_range(self, "listening_steps", low=1)
        check_range(self, "vocab_size", low=300)
        check_range(self, "learning_rate", above=0, high=1)


@dataclass
class PreferencesConfig:
    """Settings of `python -m rlhf preferences`, which makes the embedded preference pairs again."""

    model_name_or_path: str = EVERYDAY
    """Model that writes both responses of a pair."""
    output_file: str = str(ASSETS / "preferences.jsonl.gz")
    """Gzipped JSON lines with prompt, chosen, rejected."""
    num_pairs: int = 10_000
    """Pairs to collect."""
    temperature: float = 0.7
    """Sampling temperature."""
    response_length: int = 64
    """Longest response in tokens."""
    seed: int = 0
    """Seed of the sampling and of the annotators' noise."""

    def __post_init__(self) -> None:
        check_range(self, "num_pairs", low=1)
        check_range(self, "temperature", above=0)
        check_range(self, "response_length", low=1)


@dataclass
class PreviewArguments:
    """Settings of `python -m rlhf preview`: a look at preference pairs before anything is trained on them."""

    dataset_name: str = EVERYDAY
    """Preference pairs in any shape that TRL documents: "everyday", a local file (JSONL, gzipped or not, CSV, Parquet)
    or a Hub name."""
    model_name_or_path: str | None = None
    """Model whose tokens are counted too; only its tokenizer is loaded."""


@dataclass
class ModelSettings:
    """How weights are loaded and which of them are trained, under the names of TRL's ModelConfig."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """"bfloat16" computes in it; weights that are trained stay in float32, LoRA's frozen ones are kept in bfloat16."""
    use_peft: bool = False
    """Train LoRA adapters instead of all weights (needs PEFT); the saved model has them merged in."""
    lora_r: int = 16
    """LoRA: rank of the adapters."""
    lora_alpha: int = 32
    """LoRA: the adapters' output is multiplied by lora_alpha over lora_r."""
    lora_dropout: float = 0.0
    """LoRA: dropout before the adapters, in reward training; PPO has none."""
    lora_target_modules: str = "all-linear"
    """LoRA: layers that get adapters, all-linear or their names separated by commas."""

    def check_model(self) -> None:
        """Check the ranges."""
        check_range(self, "lora_r", low=1)
        check_range(self, "lora_alpha", low=1)
        check_range(self, "lora_dropout", low=0, high=0.9)


@dataclass
class PromptSettings:
    """Which prompts of a data set are taken."""

    prompt_column: str = "prompt"
    """Column of the data set that holds the prompts."""
    prompt_words: int | None = None
    """Take the first so many words of each text as a prompt to be gone on with; the whole text if not given."""
    max_prompt_length: int | None = None
    """Prompts of more tokens are left out, as are those that leave no room for the response."""

    def check_prompts(self) -> None:
        """Check the ranges."""
        check_range(self, "prompt_words", low=1)
        check_range(self, "max_prompt_length", low=1)


@dataclass
class RewardArguments(ModelSettings):
    """Settings of `python -m rlhf reward`: TRL's RewardTrainer on a classifier started from a language model."""

    model_name_or_path: str = EVERYDAY
    """Model to start from: "everyday", a run directory, a folder or a Hub name."""
    dataset_name: str = EVERYDAY
    """Preference pairs in any shape that TRL documents: "everyday", a local file (JSONL, gzipped or not, CSV, Parquet)
    or a Hub name."""
    output_dir: str | None = None
    """Run directory; a fresh one under runs/ if not given."""
    learning_rate: float = 5e-4
    """Peak learning rate of AdamW, decayed linearly to zero."""
    num_train_epochs: float = 1.0
    """Passes over the training pairs."""
    max_steps: int = -1
    """Optimizer steps; -1 leaves it to num_train_epochs."""
    per_device_train_batch_size: int = 32
    """Pairs a step, from each process."""
    per_device_eval_batch_size: int = 128
    """Pairs a batch when evaluating."""
    max_length: int = 128
    """Pairs with a longer text, in tokens, are left out, as TRL does."""
    warmup_ratio: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    eval_steps: int = 100
    """Steps between evaluations on held-out pairs."""
    save_steps: int = 0
    """Steps between checkpoints; 0 saves only the final model."""
    logging_steps: int = 5
    """Steps between points on the curves."""
    resume_from_checkpoint: str | None = None
    """A checkpoint folder of an earlier run to go on from."""
    seed: int = 0
    """Seed of the new score head and of the order of pairs."""

    def __post_init__(self) -> None:
        check_range(self, "learning_rate", above=0, high=1)
        check_range(self, "num_train_epochs", above=0, high=1000)
        check_range(self, "per_device_train_batch_size", low=1)
        check_range(self, "per_device_eval_batch_size", low=1)
        check_range(self, "max_length", low=8)
        check_range(self, "warmup_ratio", low=0, high=1)
        check_range(self, "eval_steps", low=1)
        check_range(self, "save_steps", low=0)
        check_range(self, "logging_steps", low=1)
        check_range(self, "seed", low=0)
        self.check_model()


@dataclass
class PPOSettings:
    """What PPO is told, under TRL's names and with the defaults of TRL 1.12 unless a line says otherwise.

    `rlhf.ppo.PPOConfig` joins these with Transformers' TrainingArguments, `PPOArguments` with what a command needs.
    """

    learning_rate: float = 3e-6
    """Peak learning rate of Adam, decayed linearly to zero."""
    total_episodes: int | None = None
    """Responses to sample and learn from, all together; None leaves it to num_train_epochs."""
    per_device_train_batch_size: int = 64
    """Responses an update takes from a process, times gradient_accumulation_steps; in memory at once, so many."""
    gradient_accumulation_steps: int = 1
    """An update takes this many times per_device_train_batch_size responses."""
    num_ppo_epochs: int = 4
    """Passes over the responses of one update."""
    num_mini_batches: int = 1
    """Optimizer steps an epoch: the responses are dealt into this many parts."""
    num_generations: int = 1
    """Responses to each prompt of an update."""
    response_length: int = 53
    """Longest response in tokens."""
    stop_token: Literal["eos"] | None = "eos"
    """Token that ends a response: the tokenizer's end token, or none for responses of full length (TRL's default)."""
    temperature: float = 0.7
    """Sampling temperature; the policy that is optimised is the one at this temperature."""
    kl_coef: float = 0.05
    """Price of a nat of KL from the base model, in units of score: higher keeps the policy closer to the base."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """"adaptive" moves kl_coef so that the KL of a response approaches kl_target."""
    kl_target: float = 6.0
    """KL of a response, in nats, that the adaptive controller aims at."""
    kl_horizon: int = 10_000
    """Responses over which the adaptive controller changes the coefficient by a fifth, at most; smaller is quicker."""
    cliprange: float = 0.2
    """How far the probability ratio may fall below 1 before the policy loss is clipped, and rise without the next."""
    cliprange_high: float | None = None
    """How far the ratio may rise above 1, if further than it may fall."""
    dual_clip: float | None = None
    """Where the advantage is negative, the loss is bounded by this multiple of it; none if not given."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    cliprange_value: float = 0.2
    """How far a value may move in one update before its loss is clipped, in units of score."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus."""
    gamma: float = 1.0
    """Discount factor."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation."""
    normalize_advantages: bool = True
    """Shift and scale the advantages of an update to mean 0 and variance 1."""
    whiten_rewards: bool = False
    """Scale the rewards of an update to variance 1; moves the optimum when lengths vary, so better left off."""
    early_stopping: bool = False
    """End the epochs of an update once the policy has moved 1.5 times target_kl from where the update began."""
    target_kl: float = 0.1
    """Move within one update, in nats a token, that early_stopping allows."""
    missing_eos_penalty: float | None = None
    """Taken off the score of a response that ran into the length limit; none if not given."""
    mask_truncated_completions: bool = False
    """Learn nothing from responses that ran into the length limit."""
    reward_normalization: Literal["none", "reference", "running"] = "none"
    """"reference" measures scores in standard deviations of the base model's, "running" of all scores so far."""
    reward_clip_range: float | None = None
    """Scores are clipped to plus or minus this, after they are normalised; none if not given."""
    value_head: Literal["shared", "separate"] = "shared"
    """Where values come from: a layer on the policy's own trunk, or a second model (slower, more memory)."""
    value_learning_rate: float | None = None
    """Learning rate of the values; not given, the policy's, or ten times that for a head, which begins at zero."""
    value_warmup_steps: int = 0
    """First updates in which only the value head or model learns."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    adam_epsilon: float = 1e-5
    """Epsilon of Adam, as in OpenAI's PPO."""
    num_sample_generations: int = 10
    """How often sample prompts are answered over the run."""
    max_steps: int = -1
    """PPO updates; -1 leaves it to total_episodes."""
    seed: int = 0
    """Seed of the sampling and of the order of prompts."""

    def check(self) -> None:
        """Check the ranges.

        Raises:
            BadInput: a value lies outside, or two do not fit together.
        """
        for name, hint in typing.get_type_hints(PPOSettings).items():
            if typing.get_origin(hint) is Literal and getattr(self, name) not in typing.get_args(hint):
                raise BadInput(
                    f"{name} must be one of {', '.join(typing.get_args(hint))}, not {getattr(self, name)!r}."
                )
        for name in ("temperature", "max_grad_norm", "adam_epsilon", "kl_target", "target_kl"):
            check_range(self, name, above=0)
        for name in ("cliprange", "cliprange_high", "cliprange_value", "reward_clip_range", "value_learning_rate"):
            check_range(self, name, above=0)
        for name in ("total_episodes", "per_device_train_batch_size", "gradient_accumulation_steps", "num_ppo_epochs"):
            check_range(self, name, low=1)
        for name in ("num_mini_batches", "num_generations", "response_length", "kl_horizon"):
            check_range(self, name, low=1)
        for name in ("kl_coef", "vf_coef", "entropy_coef", "num_sample_generations", "value_warmup_steps", "seed"):
            check_range(self, name, low=0)
        check_range(self, "learning_rate", low=0, high=1)
        check_range(self, "value_learning_rate", high=1)
        check_range(self, "dual_clip", above=1)
        check_range(self, "missing_eos_penalty", low=0)
        check_range(self, "gamma", low=0, high=1)
        check_range(self, "lam", low=0, high=1)
        self._check_sizes()

        if self.kl_controller == "adaptive" and self.kl_coef == 0:
            raise BadInput("The adaptive controller multiplies kl_coef, so that must be above 0 to begin with.")

    def _check_sizes(self) -> None:
        for name in ("num_mini_batches", "num_generations"):
            if self.local_batch_size % getattr(self, name):
                raise BadInput(
                    f"{name} ({getattr(self, name)}) must divide the responses of an update ({self.local_batch_size}, "
                    "which is per_device_train_batch_size times gradient_accumulation_steps)."
                )
        if self.total_episodes is not None and self.total_episodes < self.local_batch_size:
            raise BadInput(
                f"total_episodes ({self.total_episodes}) must be at least per_device_train_batch_size times "
                f"gradient_accumulation_steps ({self.local_batch_size}): one update needs that many."
            )

    @property
    def local_batch_size(self) -> int:
        """Responses an update takes from one process."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


@dataclass
class PPOArguments(PPOSettings, ModelSettings, PromptSettings):
    """Settings of `python -m rlhf ppo`: what to train on what, with defaults that fit the embedded world."""

    model_name_or_path: str = EVERYDAY
    """Policy to start from, and the reference: "everyday", a run directory, a folder or a Hub name."""
    reward_model_path: str | None = None
    """Reward model: a reward run, a demo run, a folder or a Hub name."""
    dataset_name: str = EVERYDAY
    """Prompts, alone or of preference pairs, as texts or conversations: "everyday", a local file or a Hub name."""
    output_dir: str | None = None
    """Run directory; a fresh one under runs/ if not given."""
    learning_rate: float = 4e-4
    """Peak learning rate of Adam, decayed linearly to zero."""
    total_episodes: int = 10_240
    """Responses to sample and learn from, all together."""
    num_ppo_epochs: int = 1
    """Passes over the responses of one update."""
    num_mini_batches: int = 4
    """Optimizer steps an epoch: the responses are dealt into this many parts."""
    vf_coef: float = 0.02
    """Weight of the value loss; on a shared trunk its gradient competes with the policy's."""
    lam: float = 1.0
    """Lambda of generalised advantage estimation; at 1 every token is told the whole score, values or no."""
    response_length: int = 64
    """Longest response in tokens."""
    missing_eos_penalty: float | None = 1.0
    """Taken off the score of a response that ran into the length limit; none if not given."""
    reward_normalization: Literal["none", "reference", "running"] = "reference"
    """"reference" measures scores in standard deviations of the base model's, "running" of all scores so far."""
    save_steps: int = 0
    """Updates between checkpoints; 0 saves only the final model."""
    resume_from_checkpoint: str | None = None
    """A checkpoint folder of an earlier run to go on from."""
    allow_chance_reward: bool = False
    """Go on although the reward model's loss cannot be told from guessing; its scores then mean nothing."""

    def __post_init__(self) -> None:
        self.check()
        self.check_model()
        check_range(self, "save_steps", low=0)
        self.check_prompts()


@dataclass
class BenchArguments:
    """Settings of `python -m rlhf bench ppo`: the speed of PPO, by itself or against TRL 1.12."""

    against: Literal["trl"] | None = None
    """"trl" runs TRL 1.12's PPOTrainer in turn on the same work."""
    rounds: int = 3
    """Turns, each with another seed."""
    model_name_or_path: str = EVERYDAY
    """Policy and reference; "random-gpt2" makes a GPT-2 of its own size with random weights and prompts."""
    reward_model_path: str | None = None
    """Reward model; the example run's if not given."""
    dataset_name: str = EVERYDAY
    """Prompts of the embedded world, a local file or the Hub."""
    total_episodes: int = 2560
    """Responses of a run."""
    batch_size: int = 64
    """Responses of an update."""
    micro_batch_size: int = 64
    """Responses in memory at once: TRL's per_device_train_batch_size."""
    num_ppo_epochs: int = 4
    """Passes over the responses of one update."""
    learning_rate: float = 4e-4
    """Peak learning rate, decayed linearly to zero."""
    response_length: int = 32
    """Longest response in tokens."""
    bf16: bool = False
    """Compute in bfloat16."""
    use_cpu: bool = False
    """Leave a GPU unused."""
    threads: int = 0
    """Threads of a run; 0 leaves it to PyTorch."""
    environment: str = "~/.cache/rlhf-lab/trl-1.12.0"
    """Folder of the environment with TRL 1.12, made on first use."""
    json: str | None = None
    """File for all numbers."""
    seed: int = 0
    """Seed of the first round."""

    def __post_init__(self) -> None:
        for name in ("rounds", "total_episodes", "batch_size", "micro_batch_size", "num_ppo_epochs"):
            check_range(self, name, low=1)
        check_range(self, "response_length", low=1)
        check_range(self, "learning_rate", above=0, high=1)
        for name in ("threads", "seed"):
            check_range(self, name, low=0)
        if self.batch_size % self.micro_batch_size:
            raise BadInput(f"micro_batch_size ({self.micro_batch_size}) must divide batch_size ({self.batch_size}).")


@dataclass
class CompareArguments(PromptSettings):
    """Settings of `python -m rlhf compare`: any number of models on the same test prompts, scored by one function."""

    models: list[str] | None = None
    """What is compared with the base: NAME=PATH (a PPO run, a demo run, a folder or a Hub name), best-of-N."""
    base_model_name_or_path: str = EVERYDAY
    """The base, which all are compared with and best-of-N samples from."""
    reward_model_path: str | None = None
    """Reward model that scores all; if not given, the one that the first run among the models was trained against."""
    dataset_name: str = EVERYDAY
    """Test prompts, alone or of preference pairs: "everyday", a local file or a Hub name."""
    prompts_file: str | None = None
    """Questions of your own instead, all of them: a text file, one a line, or a table with a column prompt."""
    seeds: int = 1
    """Trainings of each PPO run in all: the run itself, and the others repeated with the next seeds."""
    output_dir: str | None = None
    """Run directory; a fresh one under runs/ if not given."""
    num_prompts: int = 256
    """Test prompts, and half as many about unseen topics."""
    samples: int = 4
    """Answers of each model to each prompt."""
    response_length: int = 64
    """Longest response in tokens."""
    temperature: float = 0.7
    """Sampling temperature, the same for all."""
    seed: int = 0
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        check_range(self, "num_prompts", low=2)
        check_range(self, "seeds", low=1, high=100)
        check_range(self, "samples", low=1, high=64)
        check_range(self, "response_length", low=1)
        check_range(self, "temperature", low=0)
        self.check_prompts()
        check_range(self, "seed", low=0)
        names = [self.contender(entry)[0] for entry in self.models or ()]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise BadInput(f"Two models are called {twice.pop()}; give each a name of its own.")

    @staticmethod
    def contender(entry: str) -> tuple[str, str | None, int]:
        """An entry of `models` as its name, its path (None for the base), and the n of best-of-n (1 for a model)."""
        name, _, path = entry.partition("=")
        if path and name not in ("", "base"):  # another base is a setting of its own
            return name, path, 1
        count = name.removeprefix("best-of-")
        if entry == "base":
            return name, None, 1
        if name.startswith("best-of-") and count.isdecimal() and 2 <= int(count) <= 1024:
            return name, None, int(count)
        raise BadInput(f"models takes base, best-of-N with N from 2 to 1024, or NAME=PATH, not {entry!r}.")


@dataclass
class SweepArguments:
    """Settings of `python -m rlhf sweep`: PPO at several prices of KL, to see how far is too far."""

    reward_model_path: str | None = None
    """Reward model: a reward run, a demo run, a folder or a Hub name."""
    model_name_or_path: str = EVERYDAY
    """Policy to start from, and the base."""
    dataset_name: str = EVERYDAY
    """Prompts."""
    output_dir: str | None = None
    """Run directory; a fresh one under runs/ if not given."""
    kl_coefs: list[str] = field(default_factory=lambda: ["0", "0.02", "0.05", "0.2"])
    """Prices of a nat of KL, one run each."""
    seeds: int = 1
    """Training seeds of each price."""
    total_episodes: int = PPOArguments.total_episodes
    """Responses of a run."""
    checkpoints: int = 4
    """Checkpoints of a run that are compared, at even distances."""
    best_of: list[str] = field(default_factory=lambda: ["4", "16"])
    """n of the best-of-n baselines."""
    num_prompts: int = 128
    """Test prompts of the comparison."""
    samples: int = 2
    """Answers to each prompt."""
    seed: int = 0
    """First seed."""

    def __post_init__(self) -> None:
        for name in ("seeds", "checkpoints"):
            check_range(self, name, low=1)
        check_range(self, "num_prompts", low=2)
        if self.reward_model_path is None:
            raise BadInput("A sweep needs a reward model: give --reward_model_path, for example a demo's directory.")
        for kl_coef in self.kl_coefs:
            self.ppo_arguments(_number(float, "kl_coefs", kl_coef), self.seed, None)
        for count in self.best_of:
            CompareArguments.contender(f"best-of-{count}")

    @property
    def batch_size(self) -> int:
        """Responses of an update."""
        return PPOArguments.per_device_train_batch_size

    def ppo_arguments(self, kl_coef: float, seed: int, output_dir: Path | None) -> PPOArguments:
        """PPO's settings of one run."""
        updates = -(-self.total_episodes // self.batch_size)
        return PPOArguments(
            model_name_or_path=self.model_name_or_path,
            reward_model_path=self.reward_model_path,
            dataset_name=self.dataset_name,
            output_dir=str(output_dir),
            total_episodes=self.total_episodes,
            save_steps=max(1, updates // self.checkpoints),
            num_sample_generations=0,
            kl_coef=kl_coef,
            seed=seed,
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
            dataset_name=self.dataset_name,
            output_dir=str(output_dir),
            num_prompts=self.num_prompts,
            samples=self.samples,
            seed=self.seed,
        )


@dataclass
class DemoArguments(ModelSettings, PromptSettings):
    """Settings of `python -m rlhf demo`: reward model, PPO and comparison in a row."""

    output_dir: str | None = None
    """Run directory; a fresh one under runs/ if not given."""
    model_name_or_path: str = EVERYDAY
    """Model that everything starts from."""
    reward_model_path: str | None = None
    """Reward model, if there is one already: then none is trained."""
    dataset_name: str = EVERYDAY
    """Preference pairs and prompts."""
    total_episodes: int = PPOArguments.total_episodes
    """PPO: responses to sample and learn from, all together."""
    kl_coef: float = PPOArguments.kl_coef
    """PPO: price of a nat of KL from the base model; higher keeps the policy closer to the base."""
    learning_rate: float = PPOArguments.learning_rate
    """PPO: peak learning rate, decayed linearly to zero."""
    per_device_train_batch_size: int = PPOArguments.per_device_train_batch_size
    """PPO: responses an update learns from, times gradient_accumulation_steps; so many at most in memory at once."""
    gradient_accumulation_steps: int = PPOArguments.gradient_accumulation_steps
    """PPO: an update takes this many times per_device_train_batch_size responses."""
    num_ppo_epochs: int = PPOArguments.num_ppo_epochs
    """PPO: passes over the responses of one update."""
    num_mini_batches: int = PPOArguments.num_mini_batches
    """PPO: optimizer steps an epoch."""
    response_length: int = PPOArguments.response_length
    """PPO and comparison: longest response in tokens."""
    missing_eos_penalty: float | None = PPOArguments.missing_eos_penalty
    """PPO: taken off the score of a response that ran into the length limit; none if not given."""
    temperature: float = PPOArguments.temperature
    """PPO and comparison: sampling temperature."""
    reward_learning_rate: float = RewardArguments.learning_rate
    """Reward model: peak learning rate, decayed linearly to zero."""
    reward_max_steps: int = RewardArguments.max_steps
    """Reward model: optimizer steps; -1 leaves it to num_train_epochs."""
    reward_batch_size: int = RewardArguments.per_device_train_batch_size
    """Reward model: pairs a step."""
    num_train_epochs: float = RewardArguments.num_train_epochs
    """Reward model: passes over the training pairs."""
    max_length: int = RewardArguments.max_length
    """Reward model: pairs with a longer text, in tokens, are left out."""
    num_prompts: int = CompareArguments.num_prompts
    """Comparison: test prompts, and half as many about unseen topics."""
    samples: int = CompareArguments.samples
    """Comparison: answers of each model to each prompt."""
    seeds: int = CompareArguments.seeds
    """Comparison: trainings of PPO in all, each with another seed."""
    allow_chance_reward: bool = PPOArguments.allow_chance_reward
    """PPO: go on although the reward model's loss cannot be told from guessing."""
    seed: int = 0
    """Seed of all three steps."""

    def __post_init__(self) -> None:
        self.reward_arguments(None)
        self.ppo_arguments(None, None)
        self.compare_arguments(None, None, None)

    def _hand_down(self, config: type, **given: object) -> object:
        """The settings of one step: what is given, and this demo's own of the same name."""
        own = {field.name for field in dataclasses.fields(self)}
        same = {field.name: getattr(self, field.name) for field in dataclasses.fields(config) if field.name in own}
        return config(**{**same, **given})

    def reward_arguments(self, output_dir: Path | None) -> RewardArguments:
        """The reward model's settings within this demo."""
        return self._hand_down(
            RewardArguments,
            output_dir=str(output_dir),
            learning_rate=self.reward_learning_rate,
            max_steps=self.reward_max_steps,
            per_device_train_batch_size=self.reward_batch_size,
            per_device_eval_batch_size=4 * self.reward_batch_size,
        )

    def ppo_arguments(self, reward_dir: Path | None, output_dir: Path | None) -> PPOArguments:
        """PPO's settings within this demo."""
        return self._hand_down(
            PPOArguments, output_dir=str(output_dir), reward_model_path=self.reward_model_path or str(reward_dir)
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
            reward_model_path=self.reward_model_path or str(reward_dir),
        )


@dataclass
class PushArguments:
    """Settings of `python -m rlhf push RUN`: a run's model with its card, to the Hugging Face Hub."""

    repo_id: str | None = None
    """Name on the Hub, for example your-name/polite-answers; it is made if it is not there."""
    private: bool = False
    """Make it so that only you can see it."""
    what: Literal["policy", "reward"] = "policy"
    """Which model of the run: "policy" is the one that PPO trained, "reward" the reward model."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", self.repo_id or ""):
            raise BadInput("Give --repo_id, the model's name on the Hub, for example your-name/polite-answers.")
