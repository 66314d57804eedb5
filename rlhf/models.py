"""Loading tokenizers, policies and reward models: by Hub name, local folder, run directory, or "everyday".

Weights come from safetensors only and no code from a model folder is run.
"""

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from rlhf.config import ASSETS, EVERYDAY, BadInput
from rlhf.packed import plain_model


BASE = ASSETS / "base"
Role = Literal["policy", "reward"]
_STAGE = {"policy": "ppo", "reward": "reward"}


def resolve(name_or_path: str, role: Role) -> str:
    """What Transformers can load for this name: the embedded base, a run directory's model, a folder or a Hub name.

    Of a demo run, which holds two models, the policy is the PPO model.

    Raises:
        BadInput: a run directory without a model of this role.
    """
    if name_or_path == EVERYDAY:
        return str(BASE)
    path = Path(name_or_path)
    if not (path / "status.json").exists():
        return name_or_path
    for folder in (path / _STAGE[role] / "model", path / "model"):
        if (folder / "config.json").exists() and role_of(folder) == role:
            return str(folder)
    what = "a reward model" if role == "reward" else "a policy"
    raise BadInput(f"The run {path} holds no finished model that can serve as {what}; choose another run.")


def role_of(folder: Path) -> Role:
    """Whether a model folder holds a reward model (a sequence classifier) or a policy."""
    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    return "reward" if architectures[0].endswith("ForSequenceClassification") else "policy"


def _load(loader: type, path: str, **kwargs: object) -> PreTrainedModel | PreTrainedTokenizerBase:
    try:
        return loader.from_pretrained(path, trust_remote_code=False, **kwargs)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise BadInput(
            f"No model could be loaded from {path!r}: give a folder that holds config.json and model.safetensors, a "
            f"run directory, a Hub name (needs the network), or {EVERYDAY!r}. ({first[:200]})"
        ) from error


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or Hub name; its pad token is its eos token if it has none."""
    tokenizer = _load(AutoTokenizer, path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def _quiet() -> None:
    """Loading a language model's trunk into a classifier warns of the new head each time; it is meant to be new."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def load_policy(
    name_or_path: str, quantization_config: object | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in float32 or as a quantization config says, in eval mode, and its tokenizer."""
    path = resolve(name_or_path, "policy")
    quantized = {} if quantization_config is None else {"quantization_config": quantization_config}
    model = _load(AutoModelForCausalLM, path, dtype=torch.float32, use_safetensors=True, **quantized)
    return model.eval(), load_tokenizer(path)


def load_reward_model(name_or_path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier with one score, in eval mode, and its tokenizer.

    A language model gets a new score head; what it says before training means nothing.
    """
    path = resolve(name_or_path, "reward")
    with _quiet():
        model = _load(
            AutoModelForSequenceClassification, path, dtype=torch.float32, use_safetensors=True, num_labels=1
        )
    tokenizer = load_tokenizer(path)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def size_mb(model: PreTrainedModel) -> float:
    """Size of a model's parameters in MB (10^6 bytes), shared ones counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6


def revision(model: PreTrainedModel) -> str:
    """Where a model came from: its commit on the Hub, or of a local folder its weights' SHA-256 (16 digits).

    A run notes it, so that the run can be told from one that began with other weights of the same name.
    """
    if getattr(model.config, "_commit_hash", None):
        return model.config._commit_hash
    digest = hashlib.sha256()
    for file in sorted(Path(model.name_or_path).glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def render_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """The prompt text for a question: the tokenizer's chat template if it has one, else the question itself.

    The bos token is left to the tokenizer, which adds it to every text.

    Raises:
        BadInput: the question is empty.
    """
    question = question.strip()
    if not question:
        raise BadInput("Please write a question first.")
    if tokenizer.chat_template is None:
        return question
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text.removeprefix(tokenizer.bos_token or "")


def context_size(model: PreTrainedModel) -> int:
    """How many tokens the model can read, prompt and response together."""
    return model.config.max_position_embeddings


def check_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, role: str = "model") -> None:
    """Whether a model predicts the tokens of this tokenizer, as far as their numbers tell.

    Raises:
        BadInput: it does not. A model may have a few per cent more tokens than its tokenizer, never fewer.
    """
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        raise BadInput(f"The {role} must be a Transformers causal language model, not a {type(model).__name__}.")
    if tokenizer is None:
        raise BadInput("The policy's tokenizer is missing: give processing_class, or the model by name.")
    known, written = model.get_input_embeddings().weight.size(0), len(tokenizer)
    if written > known or written < 0.9 * known:
        raise BadInput(
            f"The {role} knows {known} tokens and the tokenizer {written}: they do not belong together; load both "
            "from the same folder or name."
        )


def check_value_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether a model can give a value to each of the policy's tokens.

    Raises:
        BadInput: it cannot.
    """
    inner = plain_model(model)
    if not isinstance(inner, PreTrainedModel) or not hasattr(inner, "score") or inner.config.num_labels != 1:
        raise BadInput(
            f"The value model must be a sequence classifier with num_labels=1, not a {type(inner).__name__}; or leave "
            "value_model out."
        )
    known = model.get_input_embeddings().weight.size(0)
    if known < len(tokenizer):
        raise BadInput(
            f"The value model knows {known} tokens and the policy's tokenizer {len(tokenizer)}: it must read the same."
        )
