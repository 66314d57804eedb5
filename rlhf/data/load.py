"""Preferences and prompts in one shape: `prompt`, `chosen`, `rejected`, either all text or all conversations.

They come from the embedded world, a local file or the Hub, in any shape that TRL documents: the prompt in a column of
its own, or `chosen` and `rejected` as whole dialogues that begin alike. TRL's `extract_prompt` finds that beginning
letter by letter, so that a prompt may end within a word of the answer; here it ends where the answer begins. The
embedded world's prompts end with a line break, which stands between a question and its answer.
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
"""Share of the prompts whose pairs are held out of reward training."""
TRAIN_SPLITS = ("train", "train_prefs")
TEST_SPLITS = ("test", "validation", "test_prefs", "eval")
"""What data sets call their splits; the first that is there is taken. "_prefs" is UltraFeedback's way."""
USABLE = 0.1
"""A data set of which less than this share can be used is refused: it is of another kind, not just careless."""
_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_OPTIONS = {"csv": {"keep_default_na": False}}
"""An answer may well be "None" or "NA"."""
_ASSISTANT = "\n\nAssistant:"
"""Where an answer begins in the transcripts of Anthropic's HH-RLHF."""
TEXT = Value("string")
CONVERSATION = List({"role": Value("string"), "content": Value("string")})
PINNED_PROMPTS = 6

# ---- One row, in any shape


def as_prompt(question: str) -> str:
    """A question of the embedded world as its base model reads it."""
    return f"{question}\n"


class _Unusable(Exception):  # noqa: N818  (a row is left out, nothing fails)
    """Why a row cannot be used, in a few words."""


def _checked(value: object, what: str) -> str | Messages:
    """A prompt or an answer that says something, its messages with role and content alone.

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
    """A conversation up to the last thing the user says, which is what an assistant answers."""
    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    return messages[: users[-1] + 1] if users else []


def _shared_prompt(chosen: str | Messages, rejected: str | Messages) -> str | Messages:
    """How two dialogues begin, up to where an answer does."""
    if isinstance(chosen, list):
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
        return _up_to_user([message for message, _ in shared])
    shared = os.path.commonprefix([chosen, rejected])
    turn = shared.rfind(_ASSISTANT)
    if turn >= 0:
        return shared[: turn + len(_ASSISTANT)]
    if any(side[len(shared) :][:1].isalnum() for side in (chosen, rejected)):
        shared = re.sub(r"\w+$", "", shared)  # the answers' first words begin alike
    return shared.removesuffix(" ")


def _pair(row: dict) -> dict[str, str | Messages]:
    """One row of preferences in the explicit form.

    Raises:
        _Unusable: nothing can be learned from it.
    """
    chosen, rejected = (_checked(row[side], "answer") for side in ("chosen", "rejected"))
    _check_same_kind(chosen, rejected)
    if chosen == rejected:
        raise _Unusable("chosen equals rejected")
    prompt = row.get("prompt")
    # As in TRL, a text as prompt beside conversations only repeats how these begin.
    if "prompt" not in row or (isinstance(prompt, str) and isinstance(chosen, list)):
        prompt = _shared_prompt(chosen, rejected)
        if not prompt:
            raise _Unusable("no common prompt")
        chosen, rejected = (_checked(side[len(prompt) :], "answer") for side in (chosen, rejected))
    prompt = _checked(prompt, "prompt")
    _check_same_kind(prompt, chosen)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _prompt(row: dict) -> dict[str, str | Messages]:
    """One row of prompts alone, or of conversations in a column `messages`.

    Raises:
        _Unusable: it holds nothing to answer.
    """
    if "prompt" in row:
        return {"prompt": _checked(row["prompt"], "prompt")}
    messages = _checked(row["messages"], "conversation")
    if isinstance(messages, str):
        raise _Unusable("not a conversation")
    return {"prompt": _checked(_up_to_user(messages), "prompt")}


# ---- A whole data set


def read(dataset_name: str) -> DatasetDict:
    """Load a local file by its ending, anything else by its Hub name or as a folder of such files."""
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
            "could be fetched from the Hub; check the name, the file ending and the network."
        ) from error
    except BadInput:
        raise
    except Exception as error:  # whatever the parsers raise, it is the file that is wrong
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise BadInput(
            f"{dataset_name} could not be read as {reader or 'a data set'} ({reason or 'it is empty'}); check what it "
            "holds."
        ) from error


def _fetch(name: str) -> DatasetDict:
    """A data set from the Hub, or as it was fetched earlier where the Hub does not answer.

    Asked first, since Datasets would try for half a minute before it looks at what it has.
    """
    offline = datasets.config.HF_HUB_OFFLINE
    try:
        if not offline:
            HfApi().dataset_info(name, timeout=10)
    except (HfHubHTTPError, HFValidationError) as error:
        raise DatasetNotFoundError(name) from error
    except Exception:  # whatever a connection that cannot be made raises
        datasets.config.HF_HUB_OFFLINE = True
    try:
        return load_dataset(name)
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def _splits(data: DatasetDict) -> tuple[Dataset, Dataset | None]:
    """The split to train on and the one to judge by, if there is one."""
    train, test = (next((data[name] for name in names if name in data), None) for names in (TRAIN_SPLITS, TEST_SPLITS))
    return next(iter(data.values())) if train is None else train, test


def _require(data: Dataset, columns: tuple[str, ...], name: str, needs: str) -> None:
    missing = [column for column in columns if column not in data.column_names]
    if missing:
        raise BadInput(
            f"{name} has no column {', '.join(missing)}; it needs {needs}, and has {', '.join(data.column_names)}."
        )


def _usable(data: Dataset, name: str, make: Callable[[dict], dict]) -> tuple[Dataset, Counter]:
    """The rows that `make` can use, as it makes them, and how many others there are by what is wrong with them.

    All are of the kind, text or conversation, of the first that can be used.

    Raises:
        BadInput: almost none can be used.
    """
    columns = ("prompt",) if make is _prompt else ("prompt", "chosen", "rejected")

    def attempt(row: dict, like: str | Messages | None = None) -> dict:
        try:
            made = make(row)
            if like is not None:
                _check_same_kind(made["prompt"], like)
        except _Unusable as fault:
            return {**dict.fromkeys(columns), "fault": str(fault)}
        return {**made, "fault": None}

    first = next((made["prompt"] for made in map(attempt, data) if not made["fault"]), "")
    kind = TEXT if isinstance(first, str) else CONVERSATION
    made = data.map(
        attempt,
        fn_kwargs={"like": first},
        remove_columns=data.column_names,
        features=Features({**dict.fromkeys(columns, kind), "fault": Value("string")}),
        load_from_cache_file=False,  # what an earlier version of this program made is not wanted
        desc=f"Reading {name}",
    )
    faults = list(made["fault"])
    kept = [row for row, fault in enumerate(faults) if fault is None]
    if len(kept) <= USABLE * len(faults):
        _refuse(name, faults)
    return made.remove_columns("fault").select(kept), Counter(filter(None, faults))


def _refuse(name: str, faults: list[str | None]) -> None:
    """Say why almost no row can be used.

    Raises:
        BadInput: always.
    """
    if not faults:
        raise BadInput(f"{name} has no rows; give a data set with some.")
    row, fault = next((row, fault) for row, fault in enumerate(faults, start=1) if fault)
    raise BadInput(
        f"Only {faults.count(None)} of {len(faults)} rows of {name} can be used, and row {row} cannot ({fault}): "
        "prompts and answers must be texts, or conversations of messages with role and content, that are not empty, "
        "and the two answers to a prompt must differ."
    )


def dropped_sentence(dataset_name: str, kept: int, dropped: Counter) -> str:
    """How many rows were left out and why; empty if none were."""
    if not dropped:
        return ""
    reasons = ", ".join(f"{fault} ({count})" for fault, count in dropped.most_common())
    return f"{dropped.total()} of {kept + dropped.total()} rows of {dataset_name} were left out: {reasons}."


def _warn(dataset_name: str, kept: int, dropped: Counter) -> None:
    if dropped:
        warnings.warn(dropped_sentence(dataset_name, kept, dropped), stacklevel=3)


def read_preferences(dataset_name: str) -> tuple[Dataset, Dataset, Counter]:
    """Preference pairs -> (train, held out, how many rows were left out by what was wrong with them).

    Raises:
        BadInput: the data cannot be read, a column is missing, or almost no pair can be used.
    """
    splits = _splits(read(str(PREFERENCES) if dataset_name == EVERYDAY else dataset_name))
    needs = "chosen and rejected, with the prompt in a column prompt or at the start of both"
    dropped = Counter()
    parts = []
    for part in splits:
        if part is not None:
            _require(part, ("chosen", "rejected"), dataset_name, needs)
            part, faults = _usable(part, dataset_name, _pair)
            dropped += faults
            parts.append(part)
    return *(parts if len(parts) == 2 else _hold_out(parts[0], dataset_name)), dropped


def _hold_out(pairs: Dataset, name: str) -> tuple[Dataset, Dataset]:
    """Pairs -> (train, held out), disjoint in their prompts."""
    of_pair = list(map(readable, pairs["prompt"]))
    prompts = sorted(set(of_pair))
    if len(prompts) < 2:
        raise BadInput(f"{name} has pairs for one prompt only; some prompts must be held out to judge by.")
    held_out = set(prompts[:: round(1 / EVAL_SHARE)])
    return (
        pairs.select([row for row, prompt in enumerate(of_pair) if prompt not in held_out]),
        pairs.select([row for row, prompt in enumerate(of_pair) if prompt in held_out]),
    )


def load_preferences(dataset_name: str) -> tuple[Dataset, Dataset]:
    """Preference pairs -> (train, held out) with `prompt`, `chosen`, `rejected`, as TRL's RewardTrainer takes them.

    Held out is a split called test, validation, test_prefs or eval, the first of these that is there, or else the
    pairs of every tenth prompt. Rows that cannot be used are left out with a warning.

    Raises:
        BadInput: the data cannot be read, a column is missing, or almost no pair can be used.
    """
    train, held_out, dropped = read_preferences(dataset_name)
    _warn(dataset_name, len(train) + len(held_out), dropped)
    return train, held_out


def _read_prompts(part: Dataset, name: str) -> tuple[Dataset, Counter]:
    """A split's column `prompt`, and how many rows were left out by what was wrong with them.

    Raises:
        BadInput: no column holds prompts, or almost no row can be used.
    """
    if {"chosen", "rejected"} <= set(part.column_names):
        return _usable(part, name, _pair)
    if "messages" not in part.column_names:
        _require(part, ("prompt",), name, "prompt, or messages, or chosen and rejected")
    return _usable(part, name, _prompt)


def load_prompts(dataset_name: str, split: str) -> list[str | Messages]:
    """Prompts of a split, as texts or conversations: "ppo", "test", or "unseen" (only of the embedded world).

    They come from a column `prompt`, from `messages` up to the last thing the user says, or from preference pairs. A
    file or data set without a test split (see `load_preferences`) gives its first four fifths to "ppo" and the rest to
    "test".

    Raises:
        BadInput: the data cannot be read, or hold no prompts.
    """
    if dataset_name == EVERYDAY:
        return [as_prompt(question) for question in prompt_splits()[split]]
    if split == "unseen":
        return []
    train, test = _splits(read(dataset_name))
    rows, dropped = _read_prompts(test if split == "test" and test is not None else train, dataset_name)
    _warn(dataset_name, len(rows), dropped)
    # Each once, as they are told apart in scores.csv.
    prompts = list({readable(prompt).strip(): prompt for prompt in rows["prompt"]}.values())
    if test is not None:
        return prompts
    cut = max(1, round(0.8 * len(prompts)))
    return prompts[:cut] if split == "ppo" else prompts[cut:]


def read_questions(path: str) -> list[str]:
    """Questions of a person's own: the lines of a text file, or the column `prompt` of a table; each once.

    Raises:
        BadInput: there is no such file, no such column, or nothing in it.
    """
    file = Path(path)
    if not file.is_file():
        raise BadInput(f"There is no file {path}; check the path.")
    if file.suffix == ".txt" or not file.stat().st_size:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    else:
        table = read(path)["train"]
        _require(table, ("prompt",), file.name, "prompt")
        lines = map(str, table["prompt"])
    questions = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(questions) < 2:
        raise BadInput(f"{file.name} holds {'one question' if questions else 'no question'}; a comparison needs two.")
    return questions


def load_beginnings(dataset_name: str, split: str, column: str, words: int | None) -> list[str]:
    """Prompts that are the first `words` words of the texts in a column, or the whole texts; see `load_prompts`.

    Raises:
        BadInput: the data cannot be read or has no such column.
    """
    if split == "unseen":
        return []
    train, test = _splits(read(dataset_name))
    part = test if split == "test" and test is not None else train
    _require(part, (column,), dataset_name, column)
    beginnings = (" ".join(str(text or "").split()[:words]) for text in part[column])
    prompts = list(dict.fromkeys(filter(None, beginnings)))
    if test is not None:
        return prompts
    cut = max(1, round(0.8 * len(prompts)))
    return prompts[:cut] if split == "ppo" else prompts[cut:]


def pinned_prompts(prompts: list) -> list:
    """A few test prompts that are answered again and again during PPO, spread over the topics."""
    return prompts[:: max(1, len(prompts) // PINNED_PROMPTS)][:PINNED_PROMPTS]


def fingerprint(texts: Iterable[str]) -> str:
    """Sixteen hexadecimal digits that change when a text does: what a run notes of its data."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]
