"""Preferences and prompts in one shape: `prompt`, `chosen`, `rejected` as text, prompts as a list of texts.

They come from the embedded world, a local file or the Hub. The embedded world's prompts end with a line break, which
stands between a question and its answer.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetNotFoundError

from rlhf.config import ASSETS, EVERYDAY, BadInput
from rlhf.everyday import prompt_splits


PREFERENCES = ASSETS / "preferences.jsonl.gz"
EVAL_SHARE = 0.1
"""Share of the prompts whose pairs are held out of reward training."""
_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
PINNED_PROMPTS = 6


def as_prompt(question: str) -> str:
    """A question of the embedded world as its base model reads it."""
    return f"{question}\n"


def _read(dataset_name: str) -> Dataset | DatasetDict:
    """Load a local file by its ending, anything else by its Hub name."""
    path = Path(dataset_name)
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    try:
        if suffix in _READERS:
            if not path.is_file():
                raise BadInput(f"There is no file {dataset_name}; check the path.")
            return load_dataset(_READERS[suffix], data_files=str(path))
        return load_dataset(dataset_name)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise BadInput(
            f"{dataset_name} is neither a file ending in {', '.join(_READERS)} (or .gz of these) nor a data set that "
            "could be fetched from the Hub; check the name, the file ending and the network."
        ) from error
    except BadInput:
        raise
    except Exception as error:  # whatever the parsers raise, it is the file that is wrong
        raise BadInput(f"{dataset_name} could not be read as {_READERS.get(suffix, 'a data set')}: {error}") from error


def _require_text(data: Dataset, columns: tuple[str, ...], name: str) -> None:
    missing = [column for column in columns if column not in data.column_names]
    if missing:
        raise BadInput(
            f"{name} has no column {', '.join(missing)}; it needs {', '.join(columns)} "
            f"and has {', '.join(data.column_names)}."
        )
    for number, row in enumerate(data, start=1):
        for column in columns:
            if not isinstance(row[column], str) or not row[column].strip():
                raise BadInput(f"Row {number} of {name}: {column} must be a text that is not empty.")


def load_preferences(dataset_name: str) -> tuple[Dataset, Dataset]:
    """Preference pairs -> (train, held out), disjoint in their prompts.

    Raises:
        BadInput: the data cannot be read, a column is missing, or a pair is malformed.
    """
    data = _read(str(PREFERENCES) if dataset_name == EVERYDAY else dataset_name)
    given_eval = data.get("test") or data.get("validation")
    train = data["train"] if "train" in data else next(iter(data.values()))
    for part in (train, given_eval):
        if part is not None:
            _require_text(part, ("prompt", "chosen", "rejected"), dataset_name)
    if given_eval is not None:
        return train, given_eval
    prompts = sorted(set(train["prompt"]))
    held_out = set(prompts[:: round(1 / EVAL_SHARE)])
    if len(prompts) < 2:
        raise BadInput(f"{dataset_name} has pairs for one prompt only; some prompts must be held out to judge by.")
    is_held_out = [prompt in held_out for prompt in train["prompt"]]
    return (
        train.select([row for row, out in enumerate(is_held_out) if not out]),
        train.select([row for row, out in enumerate(is_held_out) if out]),
    )


def load_prompts(dataset_name: str, split: str) -> list[str]:
    """Prompts of a split: "ppo", "test", or "unseen" (which only the embedded world has; empty for other data).

    A file or data set without splits of its own gives its first four fifths to "ppo" and the rest to "test".

    Raises:
        BadInput: the data cannot be read or has no prompt column.
    """
    if dataset_name == EVERYDAY:
        return [as_prompt(question) for question in prompt_splits()[split]]
    if split == "unseen":
        return []
    data = _read(dataset_name)
    if split == "test" and "test" in data:
        part = data["test"]
    else:
        part = data["train"] if "train" in data else next(iter(data.values()))
    _require_text(part, ("prompt",), dataset_name)
    prompts = list(dict.fromkeys(part["prompt"]))
    if "test" in data:
        return prompts
    cut = max(1, round(0.8 * len(prompts)))
    return prompts[:cut] if split == "ppo" else prompts[cut:]


def load_beginnings(dataset_name: str, split: str, column: str, words: int | None) -> list[str]:
    """Prompts that are the first `words` words of the texts in a column, or the whole texts; see `load_prompts`.

    Raises:
        BadInput: the data cannot be read or has no such column.
    """
    if split == "unseen":
        return []
    data = _read(dataset_name)
    part = data["test"] if split == "test" and "test" in data else data.get("train") or next(iter(data.values()))
    _require_text(part, (column,), dataset_name)
    prompts = list(dict.fromkeys(" ".join(text.split()[:words]) for text in part[column]))
    if "test" in data:
        return prompts
    cut = max(1, round(0.8 * len(prompts)))
    return prompts[:cut] if split == "ppo" else prompts[cut:]


def fingerprint(texts: Iterable[str]) -> str:
    """Sixteen hexadecimal digits that change when a text does: what a run notes of its data."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def pinned_prompts(dataset_name: str) -> list[str]:
    """A few test prompts that are answered again and again during PPO, spread over the topics."""
    prompts = load_prompts(dataset_name, "test")
    return prompts[:: max(1, len(prompts) // PINNED_PROMPTS)][:PINNED_PROMPTS]


def like_length_batches(lengths: Sequence[int], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Indices of texts that are in random order, `size` at a time, each batch with texts of like length: less padding.

    Sorted by length within a stretch of forty batches, so that batches are of mixed make, and then shuffled; a batch
    that is not full comes last.
    """
    for start in range(0, len(lengths), 40 * size):
        stretch = sorted(range(start, min(start + 40 * size, len(lengths))), key=lambda row: lengths[row])
        cut = [stretch[first : first + size] for first in range(0, len(stretch), size)]
        rng.shuffle(cut)
        yield from sorted(cut, key=len, reverse=True)
