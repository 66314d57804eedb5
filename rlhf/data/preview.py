"""A preview of preference data before training: the first pairs, lengths, and which rows are left out and why."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlhf import models
from rlhf.config import name_of_data
from rlhf.data.forms import as_pairs
from rlhf.data.load import COLUMNS, Usage, read_preferences, read_prompts
from rlhf.data.reader import read, spelling
from rlhf.models.prompts import PromptReader, TemplateRefused, give_chat_template, readable


SHOWN_PAIRS = 3
MEASURED_PAIRS = 1000
"""At most so many pairs, evenly spaced, are measured for the lengths."""
QUANTILES = {"shortest": 0, "25 %": 25, "median": 50, "75 %": 75, "longest": 100}
SIDES = ("prompt", "chosen", "rejected")


@dataclass
class Preview:
    """What a preference data set contains."""

    dataset_name: str
    rows: int
    """All rows, including those that are left out."""
    train: int
    held_out: int
    dropped: dict[str, int]
    """Fault -> number of rows left out for it."""
    unused: list[str]
    """Columns that are not used."""
    read: list[str]
    """Columns that are, as the data spell them."""
    made: str
    """From what the pairs were made, if the data hold answers with scores, ranks or a winner."""
    margin: bool
    """Whether there is a column `margin`, which reward training uses as TRL's loss does."""
    conversational: bool
    first: list[dict[str, str]]
    """Prompt, chosen and rejected of the first pairs, as readable text; of prompts alone, the prompt."""
    characters: dict[str, dict[str, int]]
    """Quantiles of the lengths of prompt, chosen and rejected; of prompts alone, of the prompt."""
    tokens: dict[str, int] | None
    """Quantiles of the longer text of each pair with its prompt, as max_length counts; None without a model."""
    moved: int = 0
    """Pairs of those measured in which a token would span the end of the prompt if both were tokenized as one."""
    refused: int = 0
    """Pairs of those measured that the model's chat template refuses."""
    measured: int = 0
    """Pairs whose tokens were counted."""
    complaint: str = ""
    """What the template says of the first of them."""


def _quantiles(lengths: list[int]) -> dict[str, int]:
    return {
        name: round(value)
        for name, value in zip(QUANTILES, np.percentile(lengths, [*QUANTILES.values()]), strict=True)
    }


def preview(
    dataset_name: str,
    model_name_or_path: str | None = None,
    chat_template_kwargs: dict | None = None,
    columns: Mapping[str, str] = COLUMNS,
    as_conversations: bool = False,
) -> Preview:
    """Preview a data set as `load_preferences` reads it; with a model, also in tokens of its tokenizer.

    Raises:
        BadInput: the data or the model's tokenizer cannot be read, or its chat template refuses all conversations.
    """
    train, held_out, usage = read_preferences(dataset_name, columns=columns, as_conversations=as_conversations)
    pairs = train.select(range(0, len(train), -(-len(train) // MEASURED_PAIRS)))
    texts = [{side: readable(pair[side]) for side in SIDES} for pair in pairs]
    tokens, of_tokens = None, {}
    if model_name_or_path:
        tokenizer = models.load_tokenizer(models.resolve(model_name_or_path, "policy"))
        give_chat_template(tokenizer, pairs["prompt"])
        reader = PromptReader(tokenizer, None, chat_template_kwargs)
        both = list(zip(*(reader.pairs(pairs["prompt"], pairs[side]) for side in SIDES[1:]), strict=True))
        read = [sides for sides in both if not any(isinstance(side, TemplateRefused) for side in sides)]
        refusals = [side for sides in both for side in sides if isinstance(side, TemplateRefused)]
        if not read:
            raise refusals[0]
        tokens = _quantiles([max(len(side.ids) for side in sides) for sides in read])
        of_tokens = {
            "moved": sum(any(side.moved for side in sides) for sides in read),
            "refused": len(both) - len(read),
            "measured": len(both),
            "complaint": str(refusals[0]) if refusals else "",
        }
    return Preview(
        dataset_name=name_of_data(dataset_name),
        **_counts(len(train), len(held_out), usage),
        margin="margin" in train.column_names,
        conversational=isinstance(pairs[0]["prompt"], list),
        first=[
            {side: readable(pair[side]) for side in SIDES}
            for pair in train.select(range(min(SHOWN_PAIRS, len(train))))
        ],
        characters={side: _quantiles([len(text[side]) for text in texts]) for side in SIDES},
        tokens=tokens,
        **of_tokens,
    )


def preview_prompts(dataset_name: str, columns: Mapping[str, str] = COLUMNS) -> Preview:
    """Preview the prompts of a data set as `load_prompts` reads them: those to train on, and those to test on.

    Raises:
        BadInput: the data cannot be read, or hold no prompts.
    """
    prompts, usage = read_prompts(dataset_name, "ppo", columns)
    held_out, _ = read_prompts(dataset_name, "test", columns)
    texts = list(map(readable, prompts))
    return Preview(
        dataset_name=name_of_data(dataset_name),
        **_counts(len(prompts), len(held_out), usage),
        margin=False,
        conversational=isinstance(prompts[0], list),
        first=[{"prompt": text} for text in texts[:SHOWN_PAIRS]],
        characters={"prompt": _quantiles(list(map(len, texts)))},
        tokens=None,
    )


def preview_any(
    dataset_name: str, model_name_or_path: str | None = None, columns: Mapping[str, str] = COLUMNS
) -> Preview:
    """Preview preference pairs, or the prompts of data that hold nothing else.

    Raises:
        BadInput: the data cannot be read, or hold neither.
    """
    table = next(iter(read(dataset_name).values()))
    answers = [columns["chosen"], columns["rejected"]]
    pairs = len(spelling(table.columns, answers)) == 2 or as_pairs(table, columns["prompt"])[1]
    if pairs or not spelling(table.columns, (columns["prompt"], "messages", "conversations")):
        return preview(dataset_name, model_name_or_path, columns=columns)
    return preview_prompts(dataset_name, {**COLUMNS, "prompt": columns["prompt"]})


def columns_of(dataset_name: str) -> list[str]:
    """The columns of a data set, as it spells them.

    Raises:
        BadInput: it cannot be read.
    """
    return [column for column in next(iter(read(dataset_name).values())).columns if column]


def _counts(train: int, held_out: int, usage: Usage) -> dict[str, object]:
    """How many rows there are, and what of the data is used and not used."""
    return {
        "rows": train + held_out + usage.rows.total(),
        "train": train,
        "held_out": held_out,
        "dropped": dict(usage.rows.most_common()),
        "unused": usage.columns,
        "read": usage.read,
        "made": usage.made,
    }
