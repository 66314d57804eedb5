"""People's choices as preference pairs for a reward model to learn from."""

from datasets import Dataset, concatenate_datasets

from rlhf.config import BadInput
from rlhf.data.load import hold_out, pairs_of
from rlhf.data.rows import Unusable, check_same_kind
from rlhf.feedback.agreement import Agreement, agreement
from rlhf.feedback.store import Store


FEWEST = 10
"""Choices with a preference, below which nothing can be learned and held out."""
HELD_OUT = 0.2
"""Share of the prompts whose choices are held out: more than of a large data set, where a tenth is plenty."""


def load_choices(path: str, as_conversations: bool = False) -> tuple[Dataset, Dataset, Agreement | None]:
    """The choices in a store -> (train, held out) with `prompt`, `chosen`, `rejected`, and how far people agree.

    Raises:
        BadInput: it is no store, or too few of its choices prefer an answer.
    """
    store = Store(path)
    rows = store.preferences()
    if len(rows) < FEWEST:
        raise BadInput(
            f"{path} holds {len(rows)} choices that prefer an answer, not counting ties and skips; it takes at least "
            f"{FEWEST}.",
            field="feedback",
        )
    pairs = pairs_of(rows, path, as_conversations)
    return *hold_out(pairs, path, HELD_OUT), agreement(store.by_pair().values())


def joined(pairs: Dataset, choices: Dataset, passes: int) -> Dataset:
    """Pairs of a data set, and people's choices so many times over.

    Raises:
        BadInput: these are texts, those conversations.
    """
    try:
        check_same_kind(choices[0]["prompt"], pairs[0]["prompt"])
    except Unusable as error:
        raise BadInput(
            f"The choices do not go with the pairs: {error}; set feedback_only.", field="feedback"
        ) from None
    return concatenate_datasets([pairs.select_columns(choices.column_names), *[choices] * passes])
