"""Loading tokenizers, policies and reward models from what `finding` finds.

Weights are loaded from safetensors only, and no code from a model folder is run. Whatever a library raises on the way
is told as one sentence, and a model is handed out only if it is whole and fits its tokenizer.
"""

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from rlhf.config import BadInput, ModelSettings
from rlhf.models.finding import adapted, architecture_of, explained, file_of, is_adapter, read_config, resolve
from rlhf.models.packed import is_peft, plain_model


BUFFERS = (".attn.bias", ".attention.bias", ".masked_bias", ".inv_freq", ".position_ids")
"""Ends of the names of constants that older Transformers saved with the weights: masks and positions."""
TEMPLATE_SECONDS = 2.0
"""A chat template that has not written a greeting after so long never ends."""


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or Hub name; if it has no pad token, the end token serves as one.

    Adapters that were saved without one have that of their base.

    Raises:
        BadInput: there is none, or it cannot be read.
    """
    config = read_config(path)
    if is_adapter(config) and file_of(path, "tokenizer_config.json") is None:
        path = adapted(path, config)
    with explained(
        f"No tokenizer could be loaded from {path!r}",
        "it needs a tokenizer.json, perhaps a newer Tokenizers to read it (`pip install -U tokenizers`), or, with a "
        "SentencePiece model alone, `pip install sentencepiece protobuf`",
    ):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise ValueError("there is no vocabulary")  # Transformers makes an empty one where the file is missing
        if not isinstance(tokenizer.model_max_length, int | float):
            raise ValueError("its model_max_length is no number")
    if tokenizer.chat_template:
        _check_template(tokenizer, path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_template(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Refuse a chat template that never ends: Jinja's sandbox bounds a loop, but not loops within loops."""
    deadline, before = time.thread_time() + TEMPLATE_SECONDS, sys.gettrace()  # not by the clock of a busy machine

    def watch(frame: FrameType, event: str, arg: object) -> Callable | None:
        if time.thread_time() > deadline:
            raise TimeoutError
        return watch if frame.f_code.co_filename == "<template>" else None

    sys.settrace(watch)
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "Hello!"}], tokenize=False)
    except TimeoutError:
        raise BadInput(f"The chat template of {path} does not end; choose another model.") from None
    except Exception:  # noqa: S110  (what it refuses is told where it is used)
        pass
    finally:
        sys.settrace(before)


def _load(
    auto: type,
    name: str,
    path: str,
    config: dict,
    tokenizer: PreTrainedTokenizerBase | None = None,
    new: Literal["head", "nothing"] = "nothing",
    **kwargs: object,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A whole model in eval mode, with adapters merged into it, and its tokenizer.

    Raises:
        BadInput: it cannot be loaded, weights are missing (other than those of a new head), have no place in the model
            that config.json describes, or are not finite, or the tokenizer writes tokens that it does not know.
    """
    base = adapted(path, config) if is_adapter(config) else path
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what is missing is told below
    try:
        with explained(
            f"No model could be loaded from {base!r}",
            "it must be one of Transformers' architectures for this purpose, with its weights as safetensors",
        ):
            model, info = auto.from_pretrained(
                base, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **kwargs
            )
    finally:
        transformers_logging.set_verbosity(verbosity)
    trunk = f"{model.base_model_prefix}."
    missing = sorted(key for key in info["missing_keys"] if new == "nothing" or key.startswith(trunk))
    if missing:
        raise BadInput(
            f"The weights of {name} are incomplete ({', '.join(missing[:3])}); download or save the model again."
        )
    # Heads of other purposes, and what reads images, are left out by right; parts of the layers that are used are not.
    used = {part for part, _ in model.base_model.named_children()}
    unused = sorted(key for key in info["unexpected_keys"] if key.removeprefix(trunk).split(".")[0] in used)
    unused = [key for key in unused if not key.endswith(BUFFERS)]
    if unused:
        raise BadInput(
            f"The weights of {name} hold more than its config.json describes ({', '.join(unused[:3])}), which would "
            "be left out; correct config.json, its number of layers for one, or download or save the model again."
        )
    if is_adapter(config):
        model = _with_adapters(model, path)
    broken = next((key for key, weight in model.named_parameters() if not weight.isfinite().all()), None)
    if broken:
        raise BadInput(
            f"The weights of {name} are not finite ({broken}): its training has diverged; choose another model, or "
            "train it again with a lower learning_rate."
        )
    tokenizer = load_tokenizer(path) if tokenizer is None else tokenizer
    check_tokens(model, tokenizer, name)
    return model.eval(), tokenizer


def _with_adapters(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """A model with the adapters of a folder or Hub name merged into it."""
    if file_of(path, "adapter_model.safetensors") is None:
        raise BadInput(f"The adapters in {path} are incomplete: there is no adapter_model.safetensors.")
    dtype = model.dtype
    with explained(
        f"The adapters in {path} could not be loaded onto {model.name_or_path}", "merge them where they were trained"
    ):
        try:
            from peft import PeftModel
        except ImportError as error:
            raise BadInput(f"{path} holds adapters, which need PEFT: run `pip install peft`.") from error
        model = merged(PeftModel.from_pretrained(model, path)).to(dtype).requires_grad_(True)
    model.name_or_path = path  # the adapters say best which weights these are, see `revision`
    return model


def _check_causal(name: str, config: dict) -> None:
    """Refuse what Transformers would make a language model of, or a classifier, that has never been trained as one."""
    architecture = architecture_of(config)
    if architecture.endswith(("ForSequenceClassification", "ForMaskedLM")):
        raise BadInput(f"{name} is no causal language model ({architecture}); choose one that is.")


def load_policy(
    name_or_path: str, quantization_config: object | None = None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode, and its tokenizer.

    Raises:
        BadInput: there is no such model, it cannot be loaded, or it does not fit its tokenizer.
    """
    path = resolve(name_or_path, "policy")
    config = read_config(path)
    _check_causal(name_or_path, config)
    quantized = {} if quantization_config is None else {"quantization_config": quantization_config}
    return _load(AutoModelForCausalLM, name_or_path, path, config, dtype=dtype, **quantized)


def load_reward_model(
    name_or_path: str,
    dtype: torch.dtype = torch.float32,
    *,
    trained: bool = False,
    label: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier with one score, in eval mode, and its tokenizer.

    A classifier with two labels scores the log-odds of the good one. A language model gets a new score head, to be
    trained. `rewarded_label` says what the score stands for.

    Args:
        trained: refuse a language model, whose scores would be random.
        label: the good one of two labels; by default the one that is called positive or good.
        tokenizer: the one whose tokens it reads; by default the one beside it.

    Raises:
        BadInput: the model cannot be loaded, does not fit its tokenizer, has more than two labels or two of which none
            is plainly good, or, with `trained`, is a language model.
    """
    path = resolve(name_or_path, "reward")
    config = read_config(path)
    has_head = architecture_of(config).endswith("ForSequenceClassification")
    if trained and not has_head:
        raise BadInput(
            f"{name_or_path} is a language model, not a reward model; train one from it with `python -m rlhf reward`, "
            "or give a sequence classifier."
        )
    if not has_head:
        _check_causal(name_or_path, config)
    # Adapters bring the head along, so that their base has none yet.
    brings_head = has_head and not is_adapter(config)
    labels = {} if brings_head else {"num_labels": 1}
    new = "nothing" if brings_head else "head"
    model, tokenizer = _load(
        AutoModelForSequenceClassification, name_or_path, path, config, tokenizer, new, dtype=dtype, **labels
    )
    if model.config.num_labels > 1:
        _score_by_log_odds(model, name_or_path, label)
    elif label not in (None, rewarded_label(model)):
        raise BadInput(f"{name_or_path} has one score and no label {label!r}; leave reward_label out.")
    if not has_head or model.config.pad_token_id is None:
        model.config.pad_token_id = padding_id(tokenizer)
    if tokenizer.pad_token is None and not hasattr(model, "score"):
        raise BadInput(f"The tokenizer of {name_or_path} has no pad token, which an encoder reads batches with.")
    return model, tokenizer


def _score_by_log_odds(model: PreTrainedModel, name: str, label: str | None) -> None:
    """Fold the two outputs of a trained classifier into one, the good label's logit minus the other's."""
    labels = {str(label): index for index, label in model.config.id2label.items()}
    if len(labels) != 2:
        raise BadInput(
            f"{name} has {len(labels)} labels ({', '.join(labels)[:80]}); a reward model needs one score, or two "
            "labels of which one is the good one."
        )
    good = [label] if label in labels else [each for each in labels if each.lower().startswith(("pos", "good"))]
    if len(good) != 1 or label not in (None, *good):
        raise BadInput(
            f"{name} has two labels, {' and '.join(labels)}: say by reward_label which of them is to become more "
            "probable."
        )
    index = labels[good[0]]
    head = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 2][-1]
    with torch.no_grad():
        head.weight = nn.Parameter(head.weight[[index]] - head.weight[[1 - index]])
        if head.bias is not None:
            head.bias = nn.Parameter(head.bias[[index]] - head.bias[[1 - index]])
    model.config.id2label, model.config.label2id = {0: good[0]}, {good[0]: 0}  # num_labels follows
    head.out_features = model.num_labels = 1


def rewarded_label(model: PreTrainedModel) -> str | None:
    """The label whose log-odds a reward model scores; None where its score has no name."""
    label = str((model.config.id2label or {}).get(0, "LABEL_0"))
    return None if label == "LABEL_0" else label


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
            name.split(".")[-1]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Embedding | Conv1D)
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
    """The plain model with its adapters merged in float32: in bfloat16 small changes would be rounded away.

    If the adapters change one of two layers that share their weights, such as the head of a model that is tied to its
    embedding, the two are separated, so that merging does not change the other.
    """
    if not is_peft(model):
        return model
    plain = plain_model(model)
    layers = plain.get_input_embeddings(), plain.get_output_embeddings()
    if all(layers) and layers[0].weight is layers[1].weight and any(hasattr(each, "lora_A") for each in layers):
        head = layers[1].get_base_layer() if hasattr(layers[1], "get_base_layer") else layers[1]
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        plain.config.get_text_config().tie_word_embeddings = plain.config.tie_word_embeddings = False
    return model.float().merge_and_unload()


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
    """The most tokens that the model can read, prompt and response together; without positions (Bloom), any number."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


# Models and tokenizers that fit together -----------------------------------------------------------------------------


def check_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, role: str) -> None:
    """Check that a model knows every token that a tokenizer writes; it may well have room for more.

    Raises:
        BadInput: it does not.
    """
    known, last = model.get_input_embeddings().weight.size(0), max(tokenizer.get_vocab().values())
    if last >= known:
        raise BadInput(
            f"The embedding of {role} has {known} rows, and its tokenizer writes {last + 1} tokens, the last one "
            f"{tokenizer.convert_ids_to_tokens(last)!r}: they do not belong together; load both from the same folder "
            "or name, or give the new tokens rows by resize_token_embeddings and save the model."
        )


def check_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, role: str = "the model") -> None:
    """Check that a policy is a causal language model that knows its tokenizer's tokens.

    Raises:
        BadInput: it is not.
    """
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        raise BadInput(
            f"{role[0].upper()}{role[1:]} must be a Transformers causal language model, not a {type(model).__name__}."
        )
    if tokenizer is None:
        raise BadInput("The policy's tokenizer is missing: give processing_class, or the model by name.")
    check_tokens(model, tokenizer, role)


def check_value_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a model can predict a value at each of the policy's tokens.

    Raises:
        BadInput: it is no classifier with one score, or does not know the policy's tokens.
    """
    inner = plain_model(model)
    if not isinstance(inner, PreTrainedModel) or not hasattr(inner, "score") or inner.config.num_labels != 1:
        raise BadInput(
            f"The value model must be a sequence classifier with num_labels=1, not a {type(inner).__name__}; or leave "
            "value_model out."
        )
    check_tokens(model, tokenizer, "the value model")
