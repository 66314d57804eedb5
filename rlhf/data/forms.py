"""Answers with scores, ranks or a winner as preference pairs, in forms that public data sets have.

Two answers in a row, a list of answers in a row, or a row for each answer: every two answers to a prompt become a
pair with the better one chosen, as in InstructGPT (2203.02155). Only their order counts, not how far they are apart.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations

from rlhf.data.reader import Table, spelling
from rlhf.data.rows import Unusable, parsed


ENDS = (("_a", "_b"), ("_0", "_1"), ("_1", "_2"))
"""How the columns of two answers end, and those of their scores."""
TWO_ANSWERS = ("response", "answer", "completion", "conversation", "human_ref")
"""How the columns of two answers begin; a conversation holds the prompt as well."""
WINNERS = ("winner", "better_response_id")
"""Columns that say which of the two is better."""
_TIES = ("tie", "both", "neither", "draw")
LISTS = ("completions", "answers", "responses", "generations")
"""Columns that hold a list of answers."""
ANSWERS = ("response", "answer", "completion", "text", "content")
"""Names of an answer in an entry of such a list; the first three also where each answer has a row of its own."""
SCORES = ("overall_score", "score", "rating", "helpfulness", "rank")
"""What answers are compared by. The lowest rank is the best, of all others the highest."""

Scored = list[tuple[object, float]] | Unusable
"""The answers to a prompt with their scores, higher for better, or why there are none."""


def as_pairs(table: Table, prompt_column: str = "prompt") -> tuple[Table, str]:
    """A table in one of these forms as one with columns chosen and rejected, and how it was made, in a few words.

    A row of the result is a pair with the other columns of where it came from, or `Unusable`, such as a tie. A table
    in none of these forms is given back as it is, with "".

    Args:
        table: rows of any form.
        prompt_column: tells prompts apart where each answer has a row of its own.
    """
    for form in (_two_answers(table), _answers_in_a_list(table), _answers_in_rows(table, prompt_column)):
        if form is not None:
            used, made, groups = form
            rows = [pair for rest, scored in groups for pair in _pairs(rest, scored)]
            kept = [column for column in table.columns if column not in used]
            return Table([*kept, "chosen", "rejected"], rows), made
    return table, ""


def _pairs(rest: dict, scored: Scored) -> Iterator[dict | Unusable]:
    """Every two of the answers to a prompt, beside the other columns of their row."""
    if isinstance(scored, Unusable):
        yield scored
        return
    if len(scored) < 2:
        yield Unusable("only one answer to the prompt")
    yield from (Unusable("an answer without a score") for _, score in scored if math.isnan(score))
    known = sorted((answer for answer in scored if not math.isnan(answer[1])), key=lambda answer: -answer[1])
    for (better, high), (worse, low) in combinations(known, 2):
        yield Unusable("a tie") if high == low else {**rest, "chosen": better, "rejected": worse}


Form = tuple[list[str], str, Iterable[tuple[dict, Scored]]]
"""The columns of a form, what it is called, and for each prompt the other columns and its answers."""


def _of_rows(table: Table, used: list[str], made: str, scored: Callable[[dict], Scored]) -> Form:
    """A form in which a row holds all answers to a prompt."""
    groups = (({name: value for name, value in row.items() if name not in used}, scored(row)) for row in table.rows)
    return used, made, groups


def _first(columns: Iterable[str], names: Iterable[str]) -> str | None:
    """The first of these columns that there is, as the table spells it."""
    return next(iter(spelling(columns, names).values()), None)


def _number(value: object, name: str) -> float:
    """A score, higher for better; NaN if there is none."""
    try:
        return -float(value) if name.strip().lower() in ("rank", "ranks") else float(value)
    except (TypeError, ValueError):
        return math.nan


# ---- Two answers in a row, with a winner or a score for each


def _two_answers(table: Table) -> Form | None:
    pairs = ((_both(table, stem, ends), ends) for stem in TWO_ANSWERS for ends in ENDS)
    answers, ends = next((found for found in pairs if found[0]), (None, ("", "")))
    winner = _first(table.columns, WINNERS)
    scores = next(filter(None, (_both(table, score, ends) for score in SCORES)), None)
    if not answers or not (winner or scores):
        return None

    def won(row: dict) -> Scored:
        called = [(end[1:], f"model{end}", answer.strip().lower()) for end, answer in zip(ends, answers, strict=True)]
        return _won(row.get(winner), called, [row.get(answer) for answer in answers])

    def scored(row: dict) -> Scored:
        return [
            (row.get(answer), _number(row.get(score), score.strip()[:-2]))
            for answer, score in zip(answers, scores, strict=True)
        ]

    by = [winner] if winner else scores
    made = f"{' and '.join(answers)}, by {' and '.join(by)}"
    return _of_rows(table, [*answers, *by], made, won if winner else scored)


def _both(table: Table, stem: str, ends: tuple[str, str]) -> list[str] | None:
    """The two columns of this name, or None if there are not both."""
    found = list(spelling(table.columns, [f"{stem}{end}" for end in ends]).values())
    return found if len(found) == 2 else None


def _won(winner: object, called: list[tuple[str, ...]], answers: list) -> Scored:
    """Two answers, of which a winner by one of these names scores 1 and the other 0; none does in a tie."""
    name = str(winner).strip().lower()
    if name.startswith(_TIES):
        return [(answer, 0.0) for answer in answers]
    if not any(name in names for names in called):
        return Unusable("a winner that is neither of the two answers")
    return [(answer, float(name in names)) for answer, names in zip(answers, called, strict=True)]


# ---- A list of answers in a row, each with its score, or with the scores in another list


def _answers_in_a_list(table: Table) -> Form | None:
    column = _first(table.columns, LISTS)
    entries = next(filter(None, (_listed(row.get(column)) for row in table.rows)), None) if column else None
    if not entries:
        return None
    if all(isinstance(entry, dict) for entry in entries):
        answer, score = _first(entries[0], ANSWERS), _first(entries[0], SCORES)
        if not answer or not score:
            return None

        def scored(row: dict) -> Scored:
            given = [entry if isinstance(entry, dict) else {} for entry in _listed(row.get(column))]
            return [(entry.get(answer), _number(entry.get(score), score)) for entry in given]

        return _of_rows(table, [column], f"the answers in {column}, by {score}", scored)
    score = _first(table.columns, [f"{name}{plural}" for name in SCORES for plural in ("s", "")])
    if not score:
        return None

    def scored_beside(row: dict) -> Scored:
        answers, scores = _listed(row.get(column)), _listed(row.get(score))
        if len(answers) != len(scores):
            return Unusable("not as many scores as answers")
        return [(answer, _number(value, score)) for answer, value in zip(answers, scores, strict=True)]

    return _of_rows(table, [column, score], f"the answers in {column}, by {score}", scored_beside)


def _listed(value: object) -> list:
    """A list of answers or scores, which a cell of a table holds as text; empty if it is none."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parsed(value)
        except Unusable:
            return []
    return value if isinstance(value, list) else []


# ---- A row for each answer


def _answers_in_rows(table: Table, prompt_column: str) -> Form | None:
    answer, score = _first(table.columns, ANSWERS[:3]), _first(table.columns, SCORES)
    prompt = _first(table.columns, [prompt_column])
    if not answer or not score or not prompt:
        return None
    context = [prompt, *spelling(table.columns, ("system", "history")).values()]
    groups: dict[str, tuple[dict, list[tuple[object, float]]]] = {}
    for row in table.rows:
        key = json.dumps([row.get(column) for column in context], default=str)
        rest = {name: value for name, value in row.items() if name not in (answer, score)}
        groups.setdefault(key, (rest, []))[1].append((row.get(answer), _number(row.get(score), score)))
    return [answer, score], f"the rows of each {prompt}, with {answer} by {score}", groups.values()
