"""Loading tokenizers, policies and reward models: by Hub name, local folder, run directory, or "everyday".

Weights are loaded from safetensors only, and no code from a model folder is run. A Hub name is looked up once before
anything is loaded, so that a wrong name or a missing network is reported at once.
"""

import hashlib
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from rlhf.config import ASSETS, EVERYDAY, BadInput, ModelSettings
from rlhf.models.packed import is_peft, plain_model
from rlhf.runs.directory import Run


BASE = ASSETS / "base"
Role = Literal["policy", "reward"]
HUB_SECONDS = 5.0
"""Timeout of that look-up."""


def resolve(name_or_path: str, role: Role) -> str:
    """The folder or Hub name to load: that of the embedded base, of a run directory's model, or the name itself.

    A demo run holds both.

    Raises:
        BadInput: a run directory without a model of this role, or a name that cannot be fetched.
    """
    if name_or_path == EVERYDAY:
        return str(BASE)
    path = Path(name_or_path)
    if not (path / "status.json").exists():
        return name_or_path if path.is_dir() else _on_hub(name_or_path)
    folder = Run(path).model(role)
    if folder:
        return str(folder)
    what = "a reward model" if role == "reward" else "a policy"
    raise BadInput(f"The run {path} holds no finished model that can serve as {what}; choose another run.")


def _is_classifier(config: dict) -> bool:
    return (config.get("architectures") or [""])[0].endswith("ForSequenceClassification")


def _on_hub(path: str) -> str:
    """The Hub name, or the cached folder if the Hub does not answer.

    One request, with a timeout: loading itself asks for every file, with retries.

    Raises:
        BadInput: there is no such model, or it cannot be fetched.
    """
    instead = f"give a folder that holds config.json and model.safetensors, a run directory, or {EVERYDAY!r}"
    try:
        get_hf_file_metadata(hf_hub_url(path, "config.json"), timeout=HUB_SECONDS)
    except HFValidationError as error:
        raise BadInput(f"{path!r} is neither a folder nor a Hub name such as openai-community/gpt2.") from error
    except GatedRepoError as error:
        raise BadInput(
            f"{path} is a gated model: accept its terms at https://huggingface.co/{path}, then run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise BadInput(
            f"The Hub has no model {path}: check the name (a private one needs `hf auth login`), or {instead}."
        ) from error
    except EntryNotFoundError as error:
        raise BadInput(f"{path} on the Hub has no config.json, so Transformers cannot load it; {instead}.") from error
    except Exception as error:  # errors of the client's HTTP library, which is not always the same
        cached = try_to_load_from_cache(path, "config.json")
        if not isinstance(cached, str):
            why = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else "the Hub does not answer"
            raise BadInput(
                f"No model could be loaded from {path!r}: there is no such folder, {why}, and it is not in the cache; "
                f"go online, or {instead}."
            ) from error
        return str(Path(cached).parent)
    return path


def read_config(path: str) -> dict:
    """The config.json of a model folder or Hub name.

    Raises:
        BadInput: there is none, or the model needs code of its own.
    """
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise BadInput(f"No model could be loaded from {path!r}: the folder holds no config.json.")
    try:
        config, _ = PreTrainedConfig.get_config_dict(path)
    except OSError as error:
        raise BadInput(f"The config.json of {path} could not be read: {_first_line(error)}") from error
    foreign = [key for key in config if key == "auto_map" or key.endswith("_implementation_internal")]
    if foreign:
        raise BadInput(
            f"{path} needs code of its own ({foreign[0]} in its config.json), which is not run here; choose a model "
            "whose architecture is part of Transformers."
        )
    return config


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def _load(loader: type, path: str, **kwargs: object) -> PreTrainedModel | PreTrainedTokenizerBase | tuple:
    read_config(path)
    try:
        return loader.from_pretrained(path, trust_remote_code=False, **kwargs)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BadInput(
            f"No model could be loaded from {path!r}: it must be one of Transformers' architectures for this purpose, "
            f"with its weights as safetensors. ({_first_line(error)})"
        ) from error


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or Hub name; if it has no pad token, the end token serves as one."""
    tokenizer = _load(AutoTokenizer, path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def _quiet() -> None:
    """Suppress the warning that a classifier made from a language model has a new score head: it is meant to."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def load_policy(
    name_or_path: str, quantization_config: object | None = None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode, and its tokenizer.

    Raises:
        BadInput: there is no such model, or it cannot be loaded.
    """
    path = resolve(name_or_path, "policy")
    quantized = {} if quantization_config is None else {"quantization_config": quantization_config}
    model = _load(AutoModelForCausalLM, path, dtype=dtype, use_safetensors=True, **quantized)
    return model.eval(), load_tokenizer(path)


def load_reward_model(
    name_or_path: str, dtype: torch.dtype = torch.float32, *, trained: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier with one score, in eval mode, and its tokenizer.

    A classifier with two labels scores the log-odds of the positive one. A language model gets a new score head, to be
    trained.

    Args:
        trained: refuse a language model, whose scores would be random.

    Raises:
        BadInput: more than two labels, a head whose weights are missing, or, with `trained`, a language model.
    """
    path = resolve(name_or_path, "reward")
    has_head = _is_classifier(read_config(path))
    if trained and not has_head:
        raise BadInput(
            f"{name_or_path} is a language model, not a reward model; train one from it with `python -m rlhf reward`, "
            "or give a sequence classifier."
        )
    labels = {} if has_head else {"num_labels": 1}
    with _quiet():
        model, info = _load(
            AutoModelForSequenceClassification,
            path,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **labels,
        )
    if has_head and info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise BadInput(f"The weights of {name_or_path} are incomplete ({missing}); download or save the model again.")
    if model.config.num_labels > 1:
        _score_by_log_odds(model, name_or_path)
    tokenizer = load_tokenizer(path)
    if not has_head or model.config.pad_token_id is None:
        model.config.pad_token_id = padding_id(tokenizer)
    return model.eval(), tokenizer


def _score_by_log_odds(model: PreTrainedModel, name: str) -> None:
    """Fold the two outputs of a trained classifier into one, the positive label's logit minus the other's."""
    labels = model.config.id2label
    if len(labels) != 2:
        raise BadInput(
            f"{name} has {len(labels)} labels ({', '.join(map(str, labels.values()))[:80]}); a reward model needs one "
            "score, or two labels of which one is the good one."
        )
    positive = next((index for index, label in labels.items() if str(label).lower().startswith("pos")), 1)
    head = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 2][-1]
    with torch.no_grad():
        head.weight = nn.Parameter(head.weight[[positive]] - head.weight[[1 - positive]])
        if head.bias is not None:
            head.bias = nn.Parameter(head.bias[[positive]] - head.bias[[1 - positive]])
    head.out_features = model.num_labels = model.config.num_labels = 1


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """A token other than the end token to pad with, for classifiers made from language models.

    Transformers scores at the last token that is not this one. If the pad token is the end token, as with GPT-2, the
    classifier would never read the end of a text; so another token is used, hidden by the attention mask like any pad.
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    return pad if pad != end or end is None else int(end == 0)


def lora(args: ModelSettings, model: PreTrainedModel, task_type: Literal["CAUSAL_LM", "SEQ_CLS"]) -> object | None:
    """PEFT's LoraConfig for a model, or None without `use_peft`. A classifier's score head is trained in full.

    Raises:
        BadInput: PEFT is not installed, or the model has no layers of the names that were asked for.
    """
    if not args.use_peft:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise BadInput("use_peft needs PEFT: run `pip install peft`.") from error
    wanted = args.lora_target_modules.replace(",", " ").split()
    if wanted != ["all-linear"]:
        layers = {
            name.split(".")[-1] for name, module in model.named_modules() if name and not list(module.children())
        }
        unknown = [name for name in wanted if name not in layers]
        if unknown or not wanted:
            raise BadInput(
                f"lora_target_modules must be all-linear or names of layers, such as {', '.join(sorted(layers)[:6])}; "
                f"{'this model has no ' + ', '.join(unknown) if unknown else 'none is named'}."
            )
    return LoraConfig(
        task_type=task_type,
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules="all-linear" if wanted == ["all-linear"] else wanted,
    )


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The plain model with its adapters merged in float32: in bfloat16 small changes would be rounded away."""
    return model.float().merge_and_unload() if is_peft(model) else model


def size_mb(model: PreTrainedModel) -> float:
    """Size of a model's parameters in MB (10^6 bytes); shared ones count once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6


def revision(model: PreTrainedModel) -> str:
    """Version of a loaded model: its commit on the Hub, or the SHA-256 of its weights in a folder (16 digits).

    Runs record it, because a name alone does not say which weights they started from.
    """
    folder = Path(model.name_or_path)
    if not folder.is_dir():
        folder = Path(try_to_load_from_cache(model.name_or_path, "config.json")).parent
    if folder.parent.name == "snapshots":  # as the Hub's client lays out its cache
        return folder.name
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)  # block by block, one digest over all files
    return digest.hexdigest()[:16]


def context_size(model: PreTrainedModel) -> int:
    """The most tokens that the model can read, prompt and response together."""
    return model.config.max_position_embeddings


def check_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, role: str = "model") -> None:
    """Check that a policy is a causal language model whose vocabulary has the size of the tokenizer's.

    Raises:
        BadInput: it is not. A model may have up to a tenth more embeddings than its tokenizer has tokens, never fewer.
    """
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        raise BadInput(f"The {role} must be a Transformers causal language model, not a {type(model).__name__}.")
    if tokenizer is None:
        raise BadInput("The policy's tokenizer is missing: give processing_class, or the model by name.")
    embeddings, tokens = model.get_input_embeddings().weight.size(0), len(tokenizer)
    if tokens > embeddings or tokens < 0.9 * embeddings:
        raise BadInput(
            f"The {role} knows {embeddings} tokens and the tokenizer {tokens}: they do not belong together; load both "
            "from the same folder or name."
        )


def check_value_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a model can predict a value at each of the policy's tokens.

    Raises:
        BadInput: it is no classifier with one score, or has fewer embeddings than the policy's tokenizer has tokens.
    """
    inner = plain_model(model)
    if not isinstance(inner, PreTrainedModel) or not hasattr(inner, "score") or inner.config.num_labels != 1:
        raise BadInput(
            f"The value model must be a sequence classifier with num_labels=1, not a {type(inner).__name__}; or leave "
            "value_model out."
        )
    embeddings = model.get_input_embeddings().weight.size(0)
    if embeddings < len(tokenizer):
        raise BadInput(
            f"The value model knows {embeddings} tokens and the policy's tokenizer {len(tokenizer)}: they must be the "
            "same."
        )
