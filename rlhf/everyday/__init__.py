"""A small hand-written world of everyday how-to questions, with an exact gold scorer for their answers."""

from rlhf.everyday.answers import plain_reaction, write_answer, write_reaction
from rlhf.everyday.rubric import Rubric, gold_score, grade, prefer
from rlhf.everyday.world import load_world, prompt_splits, questions, subject_of


__all__ = [
    "Rubric",
    "gold_score",
    "grade",
    "load_world",
    "plain_reaction",
    "prefer",
    "prompt_splits",
    "questions",
    "subject_of",
    "write_answer",
    "write_reaction",
]
