"""Preferences and prompts, and the order in which they are read."""

import random

from rlhf.data import fingerprint, like_length_batches


def test_every_text_is_read_once_in_whole_batches_of_like_length():
    rng = random.Random(0)
    lengths = [rng.randrange(10, 100) for _ in range(2005)]
    batches = list(like_length_batches(lengths, 16, random.Random(1)))
    assert sorted(row for batch in batches for row in batch) == list(range(2005))
    assert [len(batch) for batch in batches] == [16] * 125 + [5]
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)


def test_long_and_short_batches_follow_each_other_at_random():
    lengths = list(range(1600))
    longest = [max(batch) for batch in like_length_batches(lengths, 16, random.Random(1))]
    rising = sum(a < b for a, b in zip(longest, longest[1:], strict=False)) / len(longest)
    assert 0.4 < rising < 0.6  # sorted stretches would rise, or fall, throughout


def test_a_fingerprint_changes_with_a_text_and_with_a_border():
    assert fingerprint(["ab", "c"]) == fingerprint(["ab", "c"])
    assert len({fingerprint(texts) for texts in (["ab", "c"], ["a", "bc"], ["ab", "d"], ["ab"])}) == 4
