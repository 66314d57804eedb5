"""From the name of a model to its folder and what its config.json says: a Hub name, a local folder, a run directory, a
GGUF file, or "everyday".

A Hub name is looked up once before anything is loaded, so that a wrong name or a missing network is reported at once.
Whatever a library raises on the way is told as one sentence (`explained`).
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
import transformers
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from rlhf.config import ASSETS, EVERYDAY, BadInput
from rlhf.runs.directory import Run


BASE = ASSETS / "base"
Role = Literal["policy", "reward"]
CONFIGS = ("adapter_config.json", "config.json")
"""What describes a model folder. Where both are there, it holds adapters, as Transformers takes it too."""
HUB_SECONDS = 5.0
"""Timeout of that look-up."""
MOST_LAYERS = 4096
"""Layers, experts of a layer, or labels; published models have a few hundred."""


@contextmanager
def explained(tried: str, advice: str) -> Iterator[None]:
    """Tell whatever a library raises inside as one sentence: what was tried, what it said, what to do.

    Transformers, Tokenizers, safetensors, PEFT and the Hub's client raise errors of every type about a damaged or
    foreign folder, so all types are caught.
    """
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300].rstrip(".:")
        if "ignore_mismatched_sizes" in said:  # Transformers speaks of a report that it has not printed
            said = "its weights have other sizes than its config.json says"
        # Where a library did not foresee an error, its message alone says little, such as "'vocab'".
        foreseen = said and isinstance(error, OSError | ValueError | RuntimeError | ImportError)
        raise BadInput(
            f"{tried}: {said if foreseen else f'{type(error).__name__} {said}'.strip()}; {advice}."
        ) from error


def resolve(name_or_path: str, role: Role) -> str:
    """The folder or Hub name to load: that of the embedded base, of a run directory's model, or the name itself.

    A demo run holds both. A GGUF file is a policy, and what lies in the cache for it is loaded.

    Raises:
        BadInput: a run directory without a model of this role, a name that cannot be fetched, or a GGUF file that
            cannot be read.
    """
    if name_or_path == EVERYDAY:
        return str(BASE)
    path = Path(name_or_path)
    if path.suffix.lower() == ".gguf":
        return str(_converted(path))
    with explained(f"No model could be loaded from {name_or_path[:80]!r}", "give a folder or a Hub name"):
        is_run, is_folder = (path / "status.json").exists(), path.is_dir()
    if not is_run:
        return name_or_path if is_folder else _on_hub(name_or_path)
    folder = Run(path).model(role)
    if folder:
        return str(folder)
    what = "a reward model" if role == "reward" else "a policy"
    raise BadInput(f"The run {path} holds no finished model that can serve as {what}; choose another run.")


def _converted(file: Path) -> Path:
    """A GGUF file's model and tokenizer as a plain folder, in float32, made at the first call and kept in the cache.

    The package gguf is plain Python: to read SmolLM2's vocabulary and weights takes it twenty times as long as to load
    the folder, and a demo loads its model four times.

    Raises:
        BadInput: there is no such file, it cannot be read, or gguf is not installed.
    """
    advice = "it must be a whole GGUF file of an architecture that Transformers reads; download it again, or another"
    with explained(f"No model could be loaded from {file}", advice):
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()[:16]
        folder = Path(constants.HF_HOME) / "gguf" / digest
        if folder.is_dir():
            return folder
        if not transformers.utils.is_gguf_available():
            raise BadInput(f"{file} is a GGUF file, which needs the package gguf: run `pip install gguf`.")
        source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        # Newer versions may leave weights packed, as they cannot be trained.
        packed = getattr(transformers, "GgufConfig", None)
        whole = {"quantization_config": packed(dequantize=True)} if packed else {}
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, trust_remote_code=False, **whole)
        model.hf_quantizer = None  # or it would not be saved
        vars(model.config).pop("quantization_config", None)
        tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Another process may convert the same file: the folder appears whole or not at all.
        part = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            if not folder.is_dir():
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _on_hub(path: str) -> str:
    """The Hub name, or the cached folder if the Hub does not answer.

    One request, with a timeout: loading itself asks for every file, with retries.

    Raises:
        BadInput: there is no such model, or it cannot be fetched.
    """
    instead = f"give a folder that holds config.json and model.safetensors, a run directory, or {EVERYDAY!r}"
    try:
        try:
            get_hf_file_metadata(hf_hub_url(path, CONFIGS[-1]), timeout=HUB_SECONDS)
        except EntryNotFoundError:
            get_hf_file_metadata(hf_hub_url(path, CONFIGS[0]), timeout=HUB_SECONDS)
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
        cached = [try_to_load_from_cache(path, name) for name in CONFIGS]
        folders = [Path(file).parent for file in cached if isinstance(file, str)]
        if not folders:
            why = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else "the Hub does not answer"
            raise BadInput(
                f"No model could be loaded from {path!r}: there is no such folder, {why}, and it is not in the cache; "
                f"go online, or {instead}."
            ) from error
        return str(folders[0])
    return path


# What a folder says of itself ----------------------------------------------------------------------------------------


def file_of(path: str, name: str) -> str | None:
    """A file of a model folder or Hub name on this computer; None if it has no such file."""
    with explained(f"{name} of {path} could not be fetched", "check the name and the network"):
        return cached_file(path, name, _raise_exceptions_for_missing_entries=False)


def read_config(path: str) -> dict:
    """The settings of a model folder or Hub name: adapter_config.json where it holds adapters, else config.json.

    Raises:
        BadInput: there is none, it cannot be read, or the model needs code of its own.
    """
    name, file = next(((name, file) for name in CONFIGS if (file := file_of(path, name))), (None, None))
    if file is None:
        raise BadInput(
            f"No model could be loaded from {path!r}: it holds no config.json; give the folder that a model was saved "
            "to."
        )
    with explained(f"The {name} of {path} could not be read", "save or download the model again"):
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not isinstance(config.get("architectures") or [], list):
            raise ValueError("it holds no settings of a model")
    # Transformers would fetch and run these, an implementation of attention for one if it is named as on the Hub.
    foreign = [
        key
        for key, value in _entries(config)
        if key == "auto_map"
        or key.endswith("_implementation_internal")
        or (key.endswith("_implementation") and "/" in str(value))
    ]
    if foreign:
        raise BadInput(
            f"{path} needs code of its own ({foreign[0]} in its {name}), which is not run here; choose a model "
            "whose architecture is part of Transformers."
        )
    # They are made one by one before the weights are looked at.
    for key, value in _entries(config):
        if isinstance(value, int | float) and value > MOST_LAYERS and re.search("layer|expert|num_labels", key):
            raise BadInput(f"{path} cannot be a model: its {name} says {key} = {value:g}; download it again.")
    return config


def _entries(config: dict) -> Iterator[tuple[str, object]]:
    """Names and values of a config and of the configs inside it."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _entries(value)


def is_adapter(config: dict) -> bool:
    """Whether a config is that of adapters."""
    return "peft_type" in config


def architecture_of(config: dict) -> str:
    """What a model is, as its config names it; of adapters, what they make of their base."""
    if is_adapter(config):
        return "ForSequenceClassification" if config.get("task_type") == "SEQ_CLS" else ""
    return str((config.get("architectures") or [""])[0])


def adapted(path: str, config: dict) -> str:
    """The folder or Hub name of the model that adapters were trained on.

    Raises:
        BadInput: they name none, or it cannot be found.
    """
    name = config.get("base_model_name_or_path")
    try:
        base = resolve(str(name or ""), "policy") if name else None
        if base is None or is_adapter(read_config(base)):
            raise BadInput("their adapter_config.json names no whole model as base_model_name_or_path.")
    except BadInput as error:
        raise BadInput(f"{path} holds adapters only, and they need the model they were trained on: {error}") from error
    return base
