"""Words that are marked as new."""

import json

import pytest

from rlhf.runs.directory import EXAMPLE
from rlhf.ui.changes import changed_words, with_changes


def new(before, after):
    return [text for text, is_new in changed_words(before, after) if is_new]


def test_new_words_are_marked_and_neighbours_form_one_run():
    assert changed_words("Throw the pan away.", "Soak the pan overnight.") == [
        ("Soak", True), (" the pan ", False), ("overnight.", True),
    ]  # fmt: skip
    assert new("a b c", "a x y b c") == ["x y"]


def test_case_and_punctuation_make_no_new_word():
    assert new("Don't, please!", "don't please") == []
    assert new("Well, yes.", "well, no.") == ["no."]


@pytest.mark.parametrize("before, after", [("", ""), ("one two", ""), ("", "one two"), ("a", "a\n\nb  c \n")])
def test_the_runs_together_are_the_answer(before, after):
    runs = changed_words(before, after)
    assert "".join(text for text, _ in runs) == after
    assert all(text for text, _ in runs)


def test_samples_are_marked_against_the_first_answer_to_their_prompt():
    samples = [json.loads(line) for line in (EXAMPLE / "ppo" / "samples.jsonl").read_text().splitlines()]
    marked = with_changes(samples, 6)
    assert [{key: value for key, value in sample.items() if key != "changes"} for sample in marked] == samples[6:]
    for sample in marked:
        first = next(one["response"] for one in samples if one["index"] == sample["index"])
        assert sample["changes"] == changed_words(first, sample["response"])
    assert not any(is_new for sample in with_changes(samples, 0)[:6] for _, is_new in sample["changes"])
    assert with_changes([], 0) == []
