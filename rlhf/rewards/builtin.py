"""The built-in reward functions, in TRL's signature. Each is made from what follows the colon of its name."""

import re
from collections.abc import Callable

import regex

from rlhf.config import BadInput


Reward = Callable[..., list[float]]

LONGEST_PATTERN = 200
"""Characters of a regular expression."""
MATCH_SECONDS = 0.5
"""Some patterns try exponentially many ways to match ("catastrophic backtracking"); no answer is worth more time."""


def texts_of(completions: list) -> list[str]:
    """Answers as texts: those to conversations are lists with one message."""
    return [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]


def length(words: str) -> Reward:
    """1 for an answer of so many words, 20 unless given; each word more or less takes away its share.

    Raises:
        BadInput: not a whole number from 1 on.
    """
    words = words or "20"
    if not words.isdecimal() or not int(words):
        raise BadInput(f"length takes a number of words, such as length:20, not {words!r}.", field="reward_funcs")
    target = int(words)

    def reward(completions: list, **columns: object) -> list[float]:
        return [1 - abs(len(text.split()) - target) / target for text in texts_of(completions)]

    return reward


def keyword(word: str) -> Reward:
    """1 for an answer that contains a word or phrase, in capitals or not; else 0.

    Raises:
        BadInput: there is no word.
    """
    if not word.strip():
        raise BadInput("keyword needs a word, such as keyword:please.", field="reward_funcs")
    whole = re.compile(rf"(?<!\w){re.escape(word.strip())}(?!\w)", re.IGNORECASE)

    def reward(completions: list, **columns: object) -> list[float]:
        return [float(bool(whole.search(text))) for text in texts_of(completions)]

    return reward


def pattern(text: str) -> Reward:
    r"""1 for an answer in which a regular expression matches somewhere, such as \?$ for a question; else 0.

    Raises:
        BadInput: there is none, or it cannot be read; also when it takes too long on an answer.
    """
    if not 0 < len(text) <= LONGEST_PATTERN:
        raise BadInput(
            rf"regex needs a pattern of at most {LONGEST_PATTERN} characters, such as regex:\?$.", field="reward_funcs"
        )
    try:
        compiled = regex.compile(text)
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise BadInput(f"regex:{text} is no regular expression ({error}).", field="reward_funcs") from error

    def reward(completions: list, **columns: object) -> list[float]:
        try:
            return [float(bool(compiled.search(t, timeout=MATCH_SECONDS))) for t in texts_of(completions)]
        except (TimeoutError, MemoryError) as error:
            raise BadInput(
                f"regex:{text} takes more than {MATCH_SECONDS} s on one answer; write it without a repetition inside "
                "another, as in (a+)+.",
                field="reward_funcs",
            ) from error

    return reward


def sentiment(nothing: str) -> Reward:
    """How positive the words of an answer are, from -1 to 1: VADER's compound score (Hutto and Gilbert, 2014).

    Raises:
        BadInput: its package is missing, or something follows the name.
    """
    if nothing:
        raise BadInput(f"sentiment takes nothing after a colon, not {nothing!r}.", field="reward_funcs")
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # optional
    except ImportError as error:
        raise BadInput(
            "sentiment needs the package vaderSentiment: pip install vaderSentiment", field="reward_funcs"
        ) from error
    vader = SentimentIntensityAnalyzer()

    def reward(completions: list, **columns: object) -> list[float]:
        return [vader.polarity_scores(text)["compound"] for text in texts_of(completions)]

    return reward


BUILT_IN: dict[str, Callable[[str], Reward]] = {
    "length": length,
    "keyword": keyword,
    "regex": pattern,
    "sentiment": sentiment,
}
