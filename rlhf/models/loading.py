"""Loading tokenizers, policies and reward models: by Hub name, local folder, run directory, or "everyday".

Weights come from safetensors only and no code from a model folder is run. A Hub name is asked after once before
anything is loaded, so that a wrong name or a missing network is answered at once.
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
"""How long the Hub may take to say whether it has a model."""


def resolve(name_or_path: str, role: Role) -> str:
    """What Transformers can load for this name: the embedded base, a run directory's model, a folder or a Hub name.

    Of a demo run, which holds two models, the policy is the PPO model.

    Raises:
        BadInput: a run directory without a model of this role, or a name that cannot be fetched.
    """
    if name_or_path == EVERYDAY:
        return str(BASE)
    path = Path(name_or_path)
    if not (path / "status.json").exists():
        return name_or_path if path.is_dir() else _on_hub(name_or_path)
    folder = Run(path).model("ppo" if role == "policy" else "reward")
    if folder:
        return str(folder)
    what = "a reward model" if role == "reward" else "a policy"
    raise BadInput(f"The run {path} holds no finished model that can serve as {what}; choose another run.")


def _is_classifier(config: dict) -> bool:
    return (config.get("architectures") or [""])[0].endswith("ForSequenceClassification")


def _on_hub(path: str) -> str:
    """What to load for a Hub name: the name, or, when the Hub does not answer, the folder it was fetched to earlier.

    Loading itself would ask for every file, and again and again; this asks once.

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
            f"The Hub gives {path} to those only who accepted its terms: accept them at "
            f"https://huggingface.co/{path}, then run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise BadInput(
            f"The Hub has no model {path}: check the name (a private one needs `hf auth login`), or {instead}."
        ) from error
    except EntryNotFoundError as error:
        raise BadInput(f"{path} on the Hub has no config.json, so Transformers cannot load it; {instead}.") from error
    except Exception as error:  # the Hub's client raises what its HTTP library raises, and that library has changed
        cached = try_to_load_from_cache(path, "config.json")
        if not isinstance(cached, str):
            why = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else "the Hub does not answer"
            raise BadInput(
                f"No model could be loaded from {path!r}: there is no such folder, {why}, and it was not fetched "
                f"earlier; go online, or {instead}."
            ) from error
        return str(Path(cached).parent)
    return path


def read_config(path: str) -> dict:
    """The config.json of a model folder or Hub name.

    Raises:
        BadInput: there is none, or the model brings code of its own.
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
            f"{path} brings code of its own ({foreign[0]} in its config.json), which is not run here; take a model "
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
    name_or_path: str, quantization_config: object | None = None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model of this dtype or as a quantization config says, in eval mode, and its tokenizer."""
    path = resolve(name_or_path, "policy")
    quantized = {} if quantization_config is None else {"quantization_config": quantization_config}
    model = _load(AutoModelForCausalLM, path, dtype=dtype, use_safetensors=True, **quantized)
    return model.eval(), load_tokenizer(path)


def load_reward_model(
    name_or_path: str, dtype: torch.dtype = torch.float32, *, trained: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier with one score, in eval mode, and its tokenizer.

    A classifier with two labels gets one score, the log-odds of the positive one. A language model gets a new score
    head, unless `trained` is asked for; what it says before training means nothing.

    Raises:
        BadInput: more than two labels, a head whose weights are missing, or an untrained one where that will not do.
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
        model, loaded = _load(
            AutoModelForSequenceClassification,
            path,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **labels,
        )
    if has_head and loaded["missing_keys"]:
        missing = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise BadInput(f"The weights of {name_or_path} are incomplete ({missing}); fetch or save the model again.")
    if model.config.num_labels > 1:
        _score_by_log_odds(model, name_or_path)
    tokenizer = load_tokenizer(path)
    if not has_head or model.config.pad_token_id is None:
        model.config.pad_token_id = padding_id(tokenizer)
    return model.eval(), tokenizer


def _score_by_log_odds(model: PreTrainedModel, name: str) -> None:
    """Fold the two outputs of a trained classifier into one, the positive label's logit minus the other's, exactly."""
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
    """A token to pad with that ends no text, for Transformers' classifiers of the language model kind.

    They score at the last token that is not this one. Where the pad token is the end token, as with GPT-2, they would
    never see a text end; so another token stands in, which the attention mask hides like any pad.
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    return pad if pad != end or end is None else int(end == 0)


def lora(args: ModelSettings, model: PreTrainedModel, task_type: Literal["CAUSAL_LM", "SEQ_CLS"]) -> object | None:
    """PEFT's LoraConfig for a model, None if all weights are to be trained; a classifier's head is trained as it is.

    Raises:
        BadInput: PEFT is not installed, or the model has no such layers.
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
                f"{', '.join(unknown) or 'nothing'} is none of this model's."
            )
    return LoraConfig(
        task_type=task_type,
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules="all-linear" if wanted == ["all-linear"] else wanted,
    )


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The plain model with its adapters merged in, in float32: bfloat16 would lose the small changes."""
    return model.float().merge_and_unload() if is_peft(model) else model


def size_mb(model: PreTrainedModel) -> float:
    """Size of a model's parameters in MB (10^6 bytes), shared ones counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6


def revision(model: PreTrainedModel) -> str:
    """Where a model came from: its commit on the Hub, or of another folder its weights' SHA-256 (16 digits).

    A run notes it, so that the run can be told from one that began with other weights of the same name.
    """
    folder = Path(model.name_or_path)
    if not folder.is_dir():
        folder = Path(try_to_load_from_cache(model.name_or_path, "config.json")).parent
    if folder.parent.name == "snapshots":  # as the Hub's client lays out its cache
        return folder.name
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


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
