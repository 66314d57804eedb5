"""Loads preferences and prompts as columns `prompt`, `chosen`, `rejected`, either all texts or all conversations.

They come from the embedded world, a local file or folder or the Hub (`reader`), in any format that TRL documents and
some others (`rows`). The embedded world's prompts end with a line break, which separates question and answer.
"""

import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, Features, List, Value

from rlhf.config import ASSETS, EVERYDAY, BadInput
from rlhf.data.reader import KINDS, Table, kind_of, lines_of, read
from rlhf.data.rows import PAIR_COLUMNS, PROMPT_COLUMNS, Unusable, check_same_kind, checked, pair_of, prompt_of
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
TEXT = Value("string")
CONVERSATION = List({"role": Value("string"), "content": Value("string")})
PINNED_PROMPTS = 6


def as_prompt(question: str) -> str:
    """A question of the embedded world as a prompt of its base model."""
    return f"{question}\n"


@dataclass
class Unused:
    """What of a data set is not used."""

    rows: Counter[str] = field(default_factory=Counter)
    """Fault -> number of rows left out for it."""
    columns: list[str] = field(default_factory=list)

    def add(self, other: "Unused") -> None:
        """Add what is not used of another split."""
        self.rows += other.rows
        self.columns += [column for column in other.columns if column not in self.columns]

    def warn(self, name: str, kept: int) -> None:
        """Say how many rows of the data set were left out and why, and which columns are not used."""
        if self.rows:
            reasons = ", ".join(f"{fault} ({count})" for fault, count in self.rows.most_common())
            total = self.rows.total()
            warnings.warn(f"{total} of {kept + total} rows of {name} were left out: {reasons}.", stacklevel=3)
        if self.columns:
            warnings.warn(f"Columns of {name} that are not used: {', '.join(self.columns)}.", stacklevel=3)


def _splits(data: dict[str, Table]) -> tuple[Table, Table | None]:
    """The split for training and the one for evaluation, if there is one. Empty ones do not count."""
    filled = {name: table for name, table in data.items() if len(table.rows)} or data
    train, test = (
        next((filled[name] for name in names if name in filled), None) for names in (TRAIN_SPLITS, TEST_SPLITS)
    )
    return next(iter(filled.values())) if train is None else train, test


def _spelling(columns: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Known column -> as the data spell it: in any case, with spaces around it."""
    loosely = {column.strip().lower(): column for column in columns if column}
    exactly = set(columns)
    return {
        name: name if name in exactly else loosely[name.lower()]
        for name in known
        if name in exactly or name.lower() in loosely
    }


def _require_columns(table: Table, columns: tuple[str, ...], name: str, needs: str) -> None:
    found = _spelling(table.columns, columns)
    missing = [column for column in columns if column not in found]
    if missing:
        has = ", ".join(filter(None, table.columns))
        raise BadInput(f"{name} has no column {', '.join(missing)}; it needs {needs}, and has {has}.")


def _filled(table: Table) -> list[str]:
    """The columns that hold anything in any row."""
    empty = set(table.columns)
    for row in table.rows:
        empty -= {column for column in empty if row.get(column) not in (None, "", [])}
        if not empty:
            break
    return [column for column in table.columns if column not in empty]


def _usable(table: Table, name: str, make: Callable[[dict], dict], known: tuple[str, ...]) -> tuple[Dataset, Unused]:
    """Convert all rows with `make`, which takes `known` columns; also says what of the table is not used.

    All must be texts or all conversations, whichever the first usable row is. A column that is empty throughout counts
    as absent.

    Raises:
        BadInput: almost none can be used.
    """
    filled = _filled(table)
    spelling = _spelling(filled, known)
    if "prompt" in spelling:  # it says what the others would
        spelling = {column: spelling[column] for column in spelling if column not in ("messages", "conversations")}
    usable, faults = [], []
    for row in table.rows:
        fault = None
        try:
            if None in row:
                raise Unusable("more cells than columns")
            made = make({column: row.get(spelt) for column, spelt in spelling.items()})
            if usable:
                check_same_kind(made["prompt"], usable[0]["prompt"])
            usable.append(made)
        except Unusable as error:
            fault = str(error)
        faults.append(fault)
    if len(usable) <= USABLE * len(faults):
        _refuse(name, faults)
    kind = TEXT if isinstance(usable[0]["prompt"], str) else CONVERSATION
    features = {column: Value("float64") if column == "margin" else kind for column in usable[0]}
    columns = {column: [row[column] for row in usable] for column in features}
    unused = [column or "one without a name" for column in filled if column not in spelling.values()]
    return Dataset.from_dict(columns, Features(features)), Unused(Counter(filter(None, faults)), unused)


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


def read_preferences(dataset_name: str, margins: bool = True) -> tuple[Dataset, Dataset, Unused]:
    """As `load_preferences`, with what is not used instead of warnings.

    Raises:
        BadInput: the data cannot be read, a column is missing, or almost no pair can be used.
    """
    splits = _splits(read(str(PREFERENCES) if dataset_name == EVERYDAY else dataset_name))
    needs = "chosen and rejected, with the prompt in a column prompt or at the start of both"
    unused = Unused()
    parts = []
    for part in filter(None, splits):
        _require_columns(part, ("chosen", "rejected"), dataset_name, needs)
        known = PAIR_COLUMNS if margins else tuple(column for column in PAIR_COLUMNS if column != "margin")
        pairs, unused_here = _usable(part, dataset_name, pair_of, known)
        unused.add(unused_here)
        parts.append(pairs)
    return *(parts if len(parts) == 2 else _hold_out(parts[0], dataset_name)), unused


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


def load_preferences(dataset_name: str, margins: bool = True) -> tuple[Dataset, Dataset]:
    """Preference pairs -> (train, held out) with `prompt`, `chosen`, `rejected`, as TRL's RewardTrainer takes them.

    The held-out part is the first split named test, validation, test_prefs or eval; if there is none, the pairs of
    every tenth prompt. Rows that cannot be used are left out with a warning, and columns that are not used are named.

    Args:
        dataset_name: "everyday", a file, a folder or a name on the Hub.
        margins: keep a column `margin`, by which TRL's loss of a reward model wants the chosen answer to lead.

    Raises:
        BadInput: the data cannot be read, a column is missing, or almost no pair can be used.
    """
    train, held_out, unused = read_preferences(dataset_name, margins)
    unused.warn(dataset_name, len(train) + len(held_out))
    return train, held_out


def _read_prompts(part: Table, name: str, column: str) -> tuple[Dataset, Unused]:
    """A split with a column `prompt`, and what of it is not used.

    Raises:
        BadInput: no column holds prompts, or almost no row can be used.
    """
    if column != "prompt":
        _require_columns(part, (column,), name, column)
        known = (column, "system", "history")
        as_messages = "messages" if column.lower() in ("messages", "conversations") else "prompt"
        return _usable(part, name, lambda row: prompt_of({as_messages: row.pop(column, None), **row}), known)
    if len(_spelling(part.columns, ("chosen", "rejected"))) == 2:
        return _usable(part, name, pair_of, PAIR_COLUMNS)
    if not _spelling(part.columns, ("messages", "conversations")):
        _require_columns(part, ("prompt",), name, "prompt, or messages, or chosen and rejected")
    return _usable(part, name, prompt_of, PROMPT_COLUMNS)


def load_prompts(
    dataset_name: str, split: str, column: str = "prompt", words: int | None = None
) -> list[str | Messages]:
    """Distinct prompts of a split, as texts or conversations: "ppo", "test", or "unseen" (embedded world only).

    They come from a column `prompt`, from `messages` up to the user's last, or from preference pairs. In data without
    a test split (see `load_preferences`), the first 80 % are "ppo" and the rest "test".

    Args:
        dataset_name: "everyday", a file, a folder or a name on the Hub.
        split: which of the prompts.
        column: the one that holds them.
        words: take only the first so many words of each text.

    Raises:
        BadInput: the data cannot be read or contain no prompts, or conversations where words were asked for.
    """
    if dataset_name == EVERYDAY and column == "prompt" and words is None:
        return [as_prompt(question) for question in prompt_splits()[split]]
    if split == "unseen":
        return []
    train, test = _splits(read(str(PREFERENCES) if dataset_name == EVERYDAY else dataset_name))
    rows, unused = _read_prompts(test if split == "test" and test is not None else train, dataset_name, column)
    unused.warn(dataset_name, len(rows))
    prompts = list(rows["prompt"])
    if words is not None:
        if isinstance(prompts[0], list):
            raise BadInput(f"{dataset_name} holds conversations, of which prompt_words takes no part; leave it out.")
        beginning = re.compile(rf"\s*\S+(\s+\S+){{0,{words - 1}}}")
        prompts = [beginning.match(prompt)[0] for prompt in prompts]
    # Distinct as they are written in scores.csv, where a prompt is identified by its text.
    prompts = list({readable(prompt).strip(): prompt for prompt in prompts}.values())
    if test is not None:
        return prompts
    cut = max(1, round(0.8 * len(prompts)))
    return prompts[:cut] if split == "ppo" else prompts[cut:]


def read_questions(path: str) -> list[str]:
    """A person's own questions: the distinct lines of a text file, or the column `prompt` of a table.

    Raises:
        BadInput: there is no such file or column, it is no text, or holds fewer than two questions.
    """
    file = Path(os.path.expanduser(path))
    if not os.path.isfile(file):
        raise BadInput(f"There is no file {path}; check the path.")
    if file.suffix.lower() == ".txt" or not file.stat().st_size:
        questions = lines_of(file)
    elif kind_of(file):
        table = read(str(file), file.name)["train"]
        _require_columns(table, ("prompt",), file.name, "prompt")
        questions = []
        for number, row in enumerate(table.rows, start=1):
            try:
                question = checked(row.get(_spelling(table.columns, ("prompt",))["prompt"]), "question")
            except Unusable:
                continue
            if isinstance(question, list):
                raise BadInput(f"Row {number} of {file.name} holds a conversation; a question must be a text.")
            questions.append(question)
    else:
        raise BadInput(f"{file.name} is no file of questions; give one ending in .txt, {', '.join(KINDS)}.")
    questions = list(dict.fromkeys(question.strip() for question in questions if question.strip()))
    if len(questions) < 2:
        raise BadInput(f"{file.name} holds {'one question' if questions else 'no question'}; a comparison needs two.")
    return questions


def pinned_prompts(prompts: list) -> list:
    """A few evenly spaced test prompts, to sample answers to during training."""
    return prompts[:: max(1, len(prompts) // PINNED_PROMPTS)][:PINNED_PROMPTS]


def fingerprint(values: Iterable[str | Messages | float]) -> str:
    """16 hexadecimal digits of a hash of texts, conversations and margins, by which a run records its data."""
    digest = hashlib.sha256()
    for value in values:
        digest.update((value if isinstance(value, str) else json.dumps(value)).encode() + b"\0")
    return digest.hexdigest()[:16]
