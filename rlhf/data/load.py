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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, Features, List, Value

from rlhf.config import ASSETS, EVERYDAY, BadInput, name_of_data
from rlhf.data.forms import as_pairs
from rlhf.data.reader import KINDS, Table, kind_of, lines_of, read, spelling
from rlhf.data.rows import (
    PAIR_COLUMNS,
    PROMPT_COLUMNS,
    Unusable,
    as_conversation,
    check_same_kind,
    checked,
    pair_of,
    prompt_of,
)
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
class Usage:
    """What of a data set is used, and what is not."""

    rows: Counter[str] = field(default_factory=Counter)
    """Fault -> number of rows left out for it."""
    columns: list[str] = field(default_factory=list)
    """Columns that are not used."""
    read: list[str] = field(default_factory=list)
    """Columns that are, as the data spell them; chosen and rejected even where they were made from others."""
    made: str = ""
    """From what the pairs were made, if the data hold answers with scores, ranks or a winner."""

    def add(self, other: "Usage") -> None:
        """Add what is used and not used of another split."""
        self.rows += other.rows
        self.columns += [column for column in other.columns if column not in self.columns]
        self.read = self.read or other.read
        self.made = self.made or other.made

    def warn(self, name: str, kept: int) -> None:
        """Say how many rows of the data set were left out and why, and which columns are not used."""
        if self.rows:
            reasons = ", ".join(f"{fault} ({count})" for fault, count in self.rows.most_common())
            total = self.rows.total()
            what = "pairs" if self.made else "rows"
            warnings.warn(f"{total} of {kept + total} {what} of {name} were left out: {reasons}.", stacklevel=3)
        if self.columns:
            warnings.warn(f"Columns of {name} that are not used: {', '.join(self.columns)}.", stacklevel=3)


def _splits(data: dict[str, Table]) -> tuple[Table, Table | None]:
    """The split for training and the one for evaluation, if there is one. Empty ones do not count."""
    filled = {name: table for name, table in data.items() if len(table.rows)} or data
    train, test = (
        next((filled[name] for name in names if name in filled), None) for names in (TRAIN_SPLITS, TEST_SPLITS)
    )
    return next(iter(filled.values())) if train is None else train, test


def _require_columns(table: Table, columns: Iterable[str], name: str, needs: str) -> None:
    found = spelling(table.columns, columns)
    missing = [column for column in columns if column not in found]
    if missing:
        has = ", ".join(filter(None, table.columns))
        raise BadInput(f"{name} has no column {', '.join(missing)}; it needs {needs}, and has {has}.")


def _filled(table: Table) -> list[str]:
    """The columns that hold anything in any row."""
    empty = set(table.columns)
    for row in table.rows:
        if isinstance(row, Unusable):
            continue
        empty -= {column for column in empty if row.get(column) not in (None, "", [])}
        if not empty:
            break
    return [column for column in table.columns if column not in empty]


def _usable(
    table: Table, name: str, make: Callable[[dict], dict], known: Mapping[str, str], made: str = ""
) -> tuple[Dataset, Usage]:
    """Convert all rows with `make`, which takes `known` columns; also says what of the table is used.

    All must be texts or all conversations, whichever the first usable row is. A column that is empty throughout counts
    as absent.

    Args:
        table: rows, or why they cannot be used.
        name: what messages call the data.
        make: a row of known columns -> a row of the result.
        known: columns that `make` takes, and what the data call them.
        made: from what the rows were made, see `as_pairs`.

    Raises:
        BadInput: almost none can be used.
    """
    filled = _filled(table)
    spelt = spelling(filled, known)
    if "prompt" in spelt:  # it says what the others would
        spelt = {column: spelt[column] for column in spelt if column not in ("messages", "conversations")}
    usable, faults = [], []
    for row in table.rows:
        fault = None
        try:
            if isinstance(row, Unusable):
                raise row
            if None in row:
                raise Unusable("more cells than columns")
            converted = make({column: row.get(spelling) for column, spelling in spelt.items()})
            if usable:
                check_same_kind(converted["prompt"], usable[0]["prompt"])
            usable.append(converted)
        except Unusable as error:
            fault = str(error)
        faults.append(fault)
    if len(usable) <= USABLE * len(faults):
        _refuse(name, faults, "pair" if made else "row")
    kind = TEXT if isinstance(usable[0]["prompt"], str) else CONVERSATION
    features = {column: Value("float64") if column == "margin" else kind for column in usable[0]}
    columns = {column: [row[column] for row in usable] for column in features}
    read = list(spelt.values())
    unused = [column or "one without a name" for column in filled if column not in read]
    return Dataset.from_dict(columns, Features(features)), Usage(Counter(filter(None, faults)), unused, read, made)


def _refuse(name: str, faults: list[str | None], what: str) -> None:
    """Report why almost no row can be used.

    Raises:
        BadInput: always.
    """
    if not faults:
        raise BadInput(f"{name} has no rows; give a data set with some.")
    row, fault = next((row, fault) for row, fault in enumerate(faults, start=1) if fault)
    raise BadInput(
        f"Only {faults.count(None)} of {len(faults)} {what}s of {name} can be used, and {what} {row} cannot ({fault}):"
        " prompts and answers must be non-empty texts or conversations (messages with role and content), and the two "
        "answers to a prompt must differ."
    )


COLUMNS = {name: name for name in ("prompt", "chosen", "rejected")}
"""What a data set calls these columns, unless the settings say otherwise."""


def _read_pairs(table: Table, name: str, columns: Mapping[str, str], known: Iterable[str]) -> tuple[Dataset, Usage]:
    """A split of preference pairs, or of what can be made into pairs, and what of it is used.

    Raises:
        BadInput: a column is missing, or almost no pair can be used.
    """
    sides, made = {side: columns[side] for side in ("chosen", "rejected")}, ""
    if sides == {"chosen": "chosen", "rejected": "rejected"} and len(spelling(table.columns, sides)) < 2:
        table, made = as_pairs(table, columns["prompt"])
    if columns["prompt"] != "prompt":
        _require_columns(table, [columns["prompt"]], name, f"the prompt_column {columns['prompt']}")
    needs = "with the prompt in a column prompt or at the start of both"
    _require_columns(table, sides.values(), name, f"{' and '.join(sides.values())}, {needs}")
    # A column that is named for one purpose serves no other: the prompts of SHP are in `history`.
    taken = {called.lower() for column, called in columns.items() if called != column}
    called = {column: column for column in known if column not in taken} | dict(columns)
    return _usable(table, name, pair_of, called, made)


def _in_conversations(rows: Dataset) -> Dataset:
    """Texts as what a user says and an assistant answers; conversations as they are."""
    if isinstance(rows[0]["prompt"], list):
        return rows
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    features = {name: CONVERSATION if name in roles else kind for name, kind in rows.features.items()}
    columns = {name: list(rows[name]) for name in features}
    for name in roles:
        columns[name] = [as_conversation(text, roles[name]) for text in columns[name]]
    return Dataset.from_dict(columns, Features(features))


def read_preferences(
    dataset_name: str, margins: bool = True, columns: Mapping[str, str] = COLUMNS, as_conversations: bool = False
) -> tuple[Dataset, Dataset, Usage]:
    """As `load_preferences`, with what is used and not used instead of warnings.

    Raises:
        BadInput: the data cannot be read, a column is missing, or almost no pair can be used.
    """
    name = name_of_data(dataset_name)
    usage, parts = Usage(), []
    for part in filter(None, _splits(_read(dataset_name))):
        known = PAIR_COLUMNS if margins else tuple(column for column in PAIR_COLUMNS if column != "margin")
        pairs, used_here = _read_pairs(part, name, columns, known)
        usage.add(used_here)
        parts.append(_in_conversations(pairs) if as_conversations else pairs)
    return *(parts if len(parts) == 2 else hold_out(parts[0], name)), usage


def _read(dataset_name: str) -> dict[str, Table]:
    return read(str(PREFERENCES) if dataset_name == EVERYDAY else dataset_name, name_of_data(dataset_name))


def pairs_of(rows: list[dict], name: str, as_conversations: bool = False) -> Dataset:
    """Rows with prompt, chosen and rejected as preference pairs, see `load_preferences`."""
    pairs, _ = _read_pairs(Table(list(COLUMNS), rows), name, COLUMNS, PAIR_COLUMNS)
    return _in_conversations(pairs) if as_conversations else pairs


def hold_out(pairs: Dataset, name: str, share: float = EVAL_SHARE) -> tuple[Dataset, Dataset]:
    """Pairs -> (train, held out), disjoint in their prompts; of every so many prompts one is held out.

    Raises:
        BadInput: there is one prompt only.
    """
    prompts = list(map(readable, pairs["prompt"]))
    distinct = sorted(set(prompts))
    if len(distinct) < 2:
        raise BadInput(f"{name} has pairs for one prompt only; some prompts must be held out for evaluation.")
    held_out = set(distinct[:: round(1 / share)])
    return (
        pairs.select([row for row, prompt in enumerate(prompts) if prompt not in held_out]),
        pairs.select([row for row, prompt in enumerate(prompts) if prompt in held_out]),
    )


def load_preferences(
    dataset_name: str, margins: bool = True, columns: Mapping[str, str] = COLUMNS, as_conversations: bool = False
) -> tuple[Dataset, Dataset]:
    """Preference pairs -> (train, held out) with `prompt`, `chosen`, `rejected`, as TRL's RewardTrainer takes them.

    The held-out part is the first split named test, validation, test_prefs or eval; if there is none, the pairs of
    every tenth prompt. Rows that cannot be used are left out with a warning, and columns that are not used are named.

    Args:
        dataset_name: "everyday", a file, a folder or a name on the Hub.
        margins: keep a column `margin`, by which TRL's loss of a reward model wants the chosen answer to lead.
        columns: what the data call the columns prompt, chosen and rejected.
        as_conversations: make a user's message of each prompt that is a text, and an assistant's of each answer.

    Raises:
        BadInput: the data cannot be read, a column is missing, or almost no pair can be used.
    """
    train, held_out, usage = read_preferences(dataset_name, margins, columns, as_conversations)
    usage.warn(name_of_data(dataset_name), len(train) + len(held_out))
    return train, held_out


def _read_prompts(part: Table, name: str, columns: Mapping[str, str]) -> tuple[Dataset, Usage]:
    """A split with prompts, alone or in preference pairs, and what of it is used.

    Raises:
        BadInput: no column holds prompts, or almost no row can be used.
    """
    column = columns["prompt"]
    sides = [columns["chosen"], columns["rejected"]]
    if len(spelling(part.columns, sides)) == 2 or sides != ["chosen", "rejected"]:
        return _read_pairs(part, name, columns, PAIR_COLUMNS)
    if column != "prompt":
        _require_columns(part, (column,), name, column)
        known = {known: known for known in (column, "system", "history")}
        as_messages = "messages" if column.lower() in ("messages", "conversations") else "prompt"
        return _usable(part, name, lambda row: prompt_of({as_messages: row.pop(column, None), **row}), known)
    if not spelling(part.columns, ("prompt", "messages", "conversations")):
        if as_pairs(part)[1]:
            return _read_pairs(part, name, columns, PAIR_COLUMNS)
        _require_columns(part, ("prompt",), name, "prompt, or messages, or chosen and rejected")
    return _usable(part, name, prompt_of, dict(zip(PROMPT_COLUMNS, PROMPT_COLUMNS, strict=True)))


def read_prompts(
    dataset_name: str,
    split: str,
    columns: Mapping[str, str] = COLUMNS,
    words: int | None = None,
    as_conversations: bool = False,
) -> tuple[list[str | Messages], Usage]:
    """As `load_prompts`, with what is used and not used instead of warnings.

    Raises:
        BadInput: the data cannot be read or contain no prompts, or conversations where words were asked for.
    """
    name = name_of_data(dataset_name)
    train, test = _splits(_read(dataset_name))
    rows, usage = _read_prompts(test if split == "test" and test is not None else train, name, columns)
    prompts = list(rows["prompt"])
    if words is not None:
        if isinstance(prompts[0], list):
            raise BadInput(f"{name} holds conversations, of which prompt_words takes no part; leave it out.")
        beginning = re.compile(rf"\s*\S+(\s+\S+){{0,{words - 1}}}")
        prompts = [beginning.match(prompt)[0] for prompt in prompts]
    # Distinct as they are written in scores.csv, where a prompt is identified by its text.
    prompts = list({readable(prompt).strip(): prompt for prompt in prompts}.values())
    if as_conversations:
        prompts = list(map(as_conversation, prompts))
    if test is not None:
        return prompts, usage
    cut = max(1, round(0.8 * len(prompts)))
    return (prompts[:cut] if split == "ppo" else prompts[cut:]), usage


def load_prompts(
    dataset_name: str,
    split: str,
    column: str = "prompt",
    words: int | None = None,
    answers: tuple[str, str] = ("chosen", "rejected"),
    as_conversations: bool = False,
) -> list[str | Messages]:
    """Distinct prompts of a split, as texts or conversations: "ppo", "test", or "unseen" (embedded world only).

    They come from a column `prompt`, from `messages` up to the user's last, or from preference pairs. In data without
    a test split (see `load_preferences`), the first 80 % are "ppo" and the rest "test". Rows that cannot be used are
    left out with a warning, and columns that are not used are named.

    Args:
        dataset_name: "everyday", a file, a folder or a name on the Hub.
        split: which of the prompts.
        column: the one that holds them.
        words: take only the first so many words of each text.
        answers: the columns with the chosen and the rejected answer, where the data are pairs.
        as_conversations: make a user's message of each prompt that is a text.

    Raises:
        BadInput: the data cannot be read or contain no prompts, or conversations where words were asked for.
    """
    if dataset_name == EVERYDAY and column == "prompt" and words is None:
        questions = prompt_splits()[split]
        return list(map(as_conversation, questions)) if as_conversations else list(map(as_prompt, questions))
    if split == "unseen":
        return []
    columns = dict(zip(COLUMNS, (column, *answers), strict=True))
    prompts, usage = read_prompts(dataset_name, split, columns, words, as_conversations)
    usage.warn(name_of_data(dataset_name), len(prompts))
    return prompts


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
                question = checked(row.get(spelling(table.columns, ("prompt",))["prompt"]), "question")
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
