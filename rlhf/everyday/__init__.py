"""A little world of everyday how-to questions, written by hand, in which preferences mean something."""

from rlhf.everyday.answers import plain_reaction, write_answer, write_reaction
from rlhf.everyday.rubric import Rubric, gold_score, is_clean, judge, prefer
from rlhf.everyday.world import load_world, prompt_splits, questions, subject_of


__all__ = [
    "Rubric",
    "gold_score",
    "is_clean",
    "judge",
    "load_world",
    "plain_reaction",
    "prefer",
    "prompt_splits",
    "questions",
    "subject_of",
    "write_answer",
    "write_reaction",
]
