"""Loads preferences and prompts as columns `prompt`, `chosen`, `rejected`, either all texts or all conversations.

They come from the embedded world, a local file or the Hub, in any format that TRL documents: with the prompt in a
column of its own, or with `chosen` and `rejected` as whole dialogues that begin with the same prompt. TRL's
`extract_prompt` compares texts letter by letter, so that a prompt may end within the first word of an answer; here it
ends where the answer begins. The embedded world's prompts end with a line break, which separates question and answer.
"""

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from rlhf.config import ASSETS, EVERYDAY, BadInput
from rlhf.everyday import prompt_splits
from rlhf.models.prompts import Messages, readable


PREFERENCES = ASSETS / "preferences.jsonl.gz"
EVAL_SHARE = 0.1
"""Share of the prompts whose pairs are held out from reward training."""
TRAIN_SPLITS = ("train", "train_prefs")
TEST_SPLITS = ("test", "validation", "test_prefs", "eval")
"""Names of splits; the first that exists is used. UltraFeedback has "_prefs"."""
USABLE = 0.1
"""A data set of which no more than this share can be used is refused: it is of another format, not merely untidy."""
_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_OPTIONS = {"csv": {"keep_default_na": False}}
"""An answer may be "None" or "NA", which pandas would read as missing."""
_ASSISTANT = "\n\nAssistant:"
"""Before an answer in the transcripts of Anthropic's HH-RLHF."""
TEXT = Value("string")
CONVERSATION = List({"role": Value("string"), "content": Value("string")})
PINNED_PROMPTS = 6

# ---- One row


def as_prompt(question: str) -> str:
    """A question of the embedded world as a prompt of its base model."""
    return f"{question}\n"


class _Unusable(Exception):  # noqa: N818  (a row is left out, nothing fails)
    """Why a row is left out, in a few words."""


def _checked(value: object, what: str) -> str | Messages:
    """A prompt or an answer, with messages reduced to role and content.

    Raises:
        _Unusable: it is empty, or neither a text nor a conversation.
    """
    if isinstance(value, list):
        if not all(isinstance(message, dict) for message in value):
            raise _Unusable("not text")
        value = [{"role": message.get("role"), "content": message.get("content")} for message in value]
        texts = [text for message in value for text in message.values()]
    else:
        texts = [value or ""]
    if not all(isinstance(text, str) for text in texts):
        raise _Unusable("not text")
    if not (readable(value).strip() if value else ""):
        raise _Unusable(f"empty {what}")
    return value


def _check_same_kind(*values: str | Messages) -> None:
    if len(set(map(type, values))) > 1:
        raise _Unusable("text beside a conversation")


def _up_to_user(messages: Messages) -> Messages:
    """A conversation up to the last message of the user, which an assistant would answer."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return messages[: users[-1] + 1] if users else []


def _shared_prompt(chosen: str | Messages, rejected: str | Messages) -> str | Messages:
    """The prompt that two dialogues begin with, up to where the answers begin."""
    if isinstance(chosen, list):
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
        return _up_to_user([message for message, _ in shared])
    shared = os.path.commonprefix([chosen, rejected])
    turn = shared.rfind(_ASSISTANT)
    if turn >= 0:
        return shared[: turn + len(_ASSISTANT)]
    if any(side[len(shared) :][:1].isalnum() for side in (chosen, rejected)):
        shared = re.sub(r"\w+$", "", shared)  # the answers' first words share their first letters
    return shared.removesuffix(" ")


def _pair(row: dict) -> dict[str, str | Messages]:
    """One row of preferences, with an explicit prompt.

    Raises:
        _Unusable: it is incomplete, or holds no preference.
    """
    chosen, rejected = (_checked(row[side], "answer") for side in ("chosen", "rejected"))
    _check_same_kind(chosen, rejected)
    if chosen == rejected:
        raise _Unusable("chosen equals rejected")
    prompt = row.get("prompt")
    # As in TRL, a prompt that is a text beside conversations only repeats their beginning.
    if "prompt" not in row or (isinstance(prompt, str) and isinstance(chosen, list)):
        prompt = _shared_prompt(chosen, rejected)
        if not prompt:
            raise _Unusable("no common prompt")
        chosen, rejected = (_checked(side[len(prompt) :], "answer") for side in (chosen, rejected))
    prompt = _checked(prompt, "prompt")
    _check_same_kind(prompt, chosen)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _prompt(row: dict) -> dict[str, str | Messages]:
    """One row of prompts, or of conversations in a column `messages`.

    Raises:
        _Unusable: there is nothing to answer.
    """
    if "prompt" in row:
        return {"prompt": _checked(row["prompt"], "prompt")}
    messages = _checked(row["messages"], "conversation")
    if isinstance(messages, str):
        raise _Unusable("not a conversation")
    return {"prompt": _checked(_up_to_user(messages), "prompt")}


# ---- A whole data set


def read(dataset_name: str) -> DatasetDict:
    """Load a local file by its extension, or a folder of such files, or a data set of the Hub.

    Raises:
        BadInput: it does not exist or cannot be read.
    """
    path = Path(dataset_name)
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    reader = _READERS.get(suffix)
    try:
        if reader:
            if not path.is_file():
                raise BadInput(f"There is no file {dataset_name}; check the path.")
            return load_dataset(reader, data_files=str(path), **_OPTIONS.get(reader, {}))
        return load_dataset(dataset_name) if path.exists() else _fetch(dataset_name)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise BadInput(
            f"{dataset_name} is neither a file ending in {', '.join(_READERS)} (or .gz of these) nor a data set that "
            "could be fetched from the Hub; check the name, the extension and the network."
        ) from error
    except BadInput:
        raise
    except Exception as error:  # parsers raise all kinds of errors on a faulty file
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise BadInput(
            f"{dataset_name} could not be read as {reader or 'a data set'} ({reason or 'it is empty'}); check its "
            "contents."
        ) from error


def _fetch(name: str) -> DatasetDict:
    """A data set from the Hub, or from the cache if the Hub does not answer.

    The Hub is asked first, with a timeout: Datasets would retry for half a minute before it uses the cache.
    """
    offline = datasets.config.HF_HUB_OFFLINE
    try:
        if not offline:
            HfApi().dataset_info(name, timeout=10)
    except (HfHubHTTPError, HFValidationError) as error:
        raise DatasetNotFoundError(name) from error
    except Exception:  # errors of the client's HTTP library, which is not always the same
        datasets.config.HF_HUB_OFFLINE = True
    try:
        return load_dataset(name)
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def _splits(data: DatasetDict) -> tuple[Dataset, Dataset | None]:
    """The split for training and the one for evaluation, if there is one."""
    train, test = (next((data[name] for name in names if name in data), None) for names in (TRAIN_SPLITS, TEST_SPLITS))
    return next(iter(data.values())) if train is None else train, test


def _require_columns(data: Dataset, columns: tuple[str, ...], name: str, needs: str) -> None:
    missing = [column for column in columns if column not in data.column_names]
    if missing:
        raise BadInput(
            f"{name} has no column {', '.join(missing)}; it needs {needs}, and has {', '.join(data.column_names)}."
        )


def _usable(data: Dataset, name: str, make: Callable[[dict], dict]) -> tuple[Dataset, Counter]:
    """Convert all rows with `make`; returns those that could be used, and counts of the faults of the others.

    All must be texts or all conversations, whichever the first usable row is.

    Raises:
        BadInput: almost none can be used.
    """
    columns = ("prompt",) if make is _prompt else ("prompt", "chosen", "rejected")

    def attempt(row: dict, first_prompt: str | Messages | None = None) -> dict:
        try:
            converted = make(row)
            if first_prompt is not None:
                _check_same_kind(converted["prompt"], first_prompt)
        except _Unusable as fault:
            return {**dict.fromkeys(columns), "fault": str(fault)}
        return {**converted, "fault": None}

    first_prompt = next((row["prompt"] for row in map(attempt, data) if not row["fault"]), "")
    kind = TEXT if isinstance(first_prompt, str) else CONVERSATION
    converted = data.map(
        attempt,
        fn_kwargs={"first_prompt": first_prompt},
        remove_columns=data.column_names,
        features=Features({**dict.fromkeys(columns, kind), "fault": Value("string")}),
        load_from_cache_file=False,  # it may stem from an earlier version of this code
        desc=f"Reading {name}",
    )
    faults = list(converted["fault"])
    kept = [row for row, fault in enumerate(faults) if fault is None]
    if len(kept) <= USABLE * len(faults):
        _refuse(name, faults)
    return converted.remove_columns("fault").select(kept), Counter(filter(None, faults))


def _refuse(name: str, faults: list[str | None]) -> None:
    """Report why almost no row can be used.

    Raises:
        BadInput: always.
    """
    if not faults:
        raise BadInput(f"{name} has no rows; give a data set with some.")
    row, fault = next((row, fault) for row, fault in enumerate(faults, start=1) if fault)
    raise BadInput(
        f"Only {faults.count(None)} of {len(faults)} rows of {name} can be used, and row {row} cannot ({fault}): "
        "prompts and answers must be non-empty texts or conversations (messages with role and content), and the two "
        "answers to a prompt must differ."
    )


def dropped_sentence(dataset_name: str, kept: int, dropped: Counter) -> str:
    """A sentence on how many rows were left out and why; empty if none were."""
    if not dropped:
        return ""
    reasons = ", ".join(f"{fault} ({count})" for fault, count in dropped.most_common())
    return f"{dropped.total()} of {kept + dropped.total()} rows of {dataset_name} were left out: {reasons}."


def _warn(dataset_name: str, kept: int, dropped: Counter) -> None:
    if dropped:
        warnings.warn(dropped_sentence(dataset_name, kept, dropped), stacklevel=3)


def read_preferences(dataset_name: str) -> tuple[Dataset, Dataset, Counter]:
    """As `load_preferences`, with counts of the faults of the rows that were left out instead of a warning.

    Raises:
        BadInput: the data cannot be read, a column is missing, or almost no pair can be used.
    """
    splits = _splits(read(str(PREFERENCES) if dataset_name == EVERYDAY else dataset_name))
    needs = "chosen and rejected, with the prompt in a column prompt or at the start of both"
    dropped = Counter()
    parts = []
    for part in splits:
        if part is not None:
            _require_columns(part, ("chosen", "rejected"), dataset_name, needs)
            part, dropped_here = _usable(part, dataset_name, _pair)
            dropped += dropped_here
            parts.append(part)
    return *(parts if len(parts) == 2 else _hold_out(parts[0], dataset_name)), dropped


def _hold_out(pairs: Dataset, name: str) -> tuple[Dataset, Dataset]:
    """Pairs -> (train, held out), disjoint in their prompts."""
    prompts = list(map(readable, pairs["prompt"]))
    distinct = sorted(set(prompts))
    if len(distinct) < 2:
        raise BadInput(f"{name} has pairs for one prompt only; some prompts must be held out for evaluation.")
    held_out = set(distinct[:: round(1 / EVAL_SHARE)])
    return (
        pairs.select([row for row, prompt in enumerate(prompts) if prompt not in held_out]),
        pairs.select([row for row, prompt in enumerate(prompts) if prompt in held_out]),
    )


def load_preferences(dataset_name: str) -> tuple[Dataset, Dataset]:
    """Preference pairs -> (train, held out) with `prompt`, `chosen`, `rejected`, as TRL's RewardTrainer takes them.

    The held-out part is the first split named test, validation, test_prefs or eval; if there is none, the pairs of
    every tenth prompt. Rows that cannot be used are left out with a warning.

    Raises:
        BadInput: the data cannot be read, a column is missing, or almost no pair can be used.
    """
    train, held_out, dropped = read_preferences(dataset_name)
    _warn(dataset_name, len(train) + len(held_out), dropped)
    return train, held_out


def _read_prompts(part: Dataset, name: str) -> tuple[Dataset, Counter]:
    """A split with a column `prompt`, and counts of the faults of the rows that were left out.

    Raises:
        BadInput: no column holds prompts, or almost no row can be used.
    """
    if {"chosen", "rejected"} <= set(part.column_names):
        return _usable(part, name, _pair)
    if "messages" not in part.column_names:
        _require_columns(part, ("prompt",), name, "prompt, or messages, or chosen and rejected")
    return _usable(part, name, _prompt)


def load_prompts(dataset_name: str, split: str) -> list[str | Messages]:
    """Distinct prompts of a split, as texts or conversations: "ppo", "test", or "unseen" (embedded world only).

    They come from a column `prompt`, from `messages` up to the user's last, or from preference pairs. In data without
    a test split (see `load_preferences`), the first 80 % are "ppo" and the rest "test".

    Raises:
        BadInput: the data cannot be read, or contain no prompts.
    """
    if dataset_name == EVERYDAY:
        return [as_prompt(question) for question in prompt_splits()[split]]
    if split == "unseen":
        return []
    train, test = _splits(read(dataset_name))
    rows, dropped = _read_prompts(test if split == "test" and test is not None else train, dataset_name)
    _warn(dataset_name, len(rows), dropped)
    # Distinct as they are written in scores.csv, where a prompt is identified by its text.
    prompts = list({readable(prompt).strip(): prompt for prompt in rows["prompt"]}.values())
    if test is not None:
        return prompts
    cut = max(1, round(0.8 * len(prompts)))
    return prompts[:cut] if split == "ppo" else prompts[cut:]


def read_questions(path: str) -> list[str]:
    """A person's own questions: the distinct lines of a text file, or the column `prompt` of a table.

    Raises:
        BadInput: there is no such file or column, or fewer than two questions.
    """
    file = Path(path)
    if not file.is_file():
        raise BadInput(f"There is no file {path}; check the path.")
    if file.suffix == ".txt" or not file.stat().st_size:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    else:
        table = read(path)["train"]
        _require_columns(table, ("prompt",), file.name, "prompt")
        lines = map(str, table["prompt"])
    questions = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(questions) < 2:
        raise BadInput(f"{file.name} holds {'one question' if questions else 'no question'}; a comparison needs two.")
    return questions


def load_beginnings(dataset_name: str, split: str, column: str, words: int | None) -> list[str]:
    """Prompts made of the first `words` words of the texts in a column, or of whole texts; see `load_prompts`.

    Raises:
        BadInput: the data cannot be read or has no such column.
    """
    if split == "unseen":
        return []
    train, test = _splits(read(dataset_name))
    part = test if split == "test" and test is not None else train
    _require_columns(part, (column,), dataset_name, column)
    beginnings = (" ".join(str(text or "").split()[:words]) for text in part[column])
    prompts = list(dict.fromkeys(filter(None, beginnings)))
    if test is not None:
        return prompts
    cut = max(1, round(0.8 * len(prompts)))
    return prompts[:cut] if split == "ppo" else prompts[cut:]


def pinned_prompts(prompts: list) -> list:
    """A few evenly spaced test prompts, to sample answers to during training."""
    return prompts[:: max(1, len(prompts) // PINNED_PROMPTS)][:PINNED_PROMPTS]


def fingerprint(texts: Iterable[str]) -> str:
    """16 hexadecimal digits of a hash of the texts, by which a run records its data."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]
