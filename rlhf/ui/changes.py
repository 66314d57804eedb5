"""Which words of an answer are new, for the page to mark."""

import re
from difflib import SequenceMatcher


def changed_words(before: str, after: str) -> list[tuple[str, bool]]:
    """`after` cut into runs of (text, whether its words are new compared with `before`); joined they are `after`.

    Case and punctuation make no new word.
    """
    words = list(re.finditer(r"\S+", after))
    old, new = ([re.sub(r"[^\w']", "", word.lower()) for word in text.split()] for text in (before, after))
    runs, end = [], 0
    for change, _, _, first, last in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if change in ("insert", "replace"):
            start, stop = words[first].start(), words[last - 1].end()
            runs += [(after[end:start], False), (after[start:stop], True)]
            end = stop
    return [run for run in [*runs, (after[end:], False)] if run[0]]


def with_changes(samples: list[dict], seen: int) -> list[dict]:
    """The samples of a run after the first `seen`, each with its words that the first answer to its prompt lacks."""
    first = {sample["index"]: sample["response"] for sample in samples if sample["step"] == samples[0]["step"]}
    return [
        sample | {"changes": changed_words(first.get(sample["index"], ""), sample["response"])}
        for sample in samples[seen:]
    ]
