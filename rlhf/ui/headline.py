"""Is it learning? The sentence at the top of the live view, from a run's status and its logged numbers."""

from collections.abc import Sequence

from rlhf import metrics
from rlhf.figures.curves import latest
from rlhf.runs.directory import ACTIVE
from rlhf.words import number, percent


FIRST_ROWS, LAST_ROWS = 3, 8
"""How many logged lines are averaged at the beginning and at the end."""
CLEAR = 0.2
"""A change of the mean score is called one from this share of the scores' standard deviation on."""
ENDED_BADLY = {"failed": "The run failed", "diverged": "Training diverged", "interrupted": "The run was interrupted"}


def headline(status: dict, rows: dict[str, list[dict]]) -> dict[str, str]:
    """{"tone": "good", "wait", "bad" or "none", "text": a sentence}.

    Args:
        status: the run's.
        rows: the logged lines of its reward, PPO and DPO stages.
    """
    state, message = status.get("state"), status.get("message") or ""
    active = state in ACTIVE
    if state in ENDED_BADLY:
        text = f"{ENDED_BADLY[state]}. {message} What was logged until then is shown below."
        return {"tone": "bad", "text": " ".join(text.split())}
    if rows.get("ppo"):
        return _ppo_headline(rows["ppo"], active)
    if rows.get("dpo"):
        learned = "the answer people chose became likelier than the other"
        return _pairs_headline(rows["dpo"], active, metrics.DPO_ACCURACY, metrics.DPO_EVAL_ACCURACY, learned)
    if rows.get("reward"):
        learned = "it prefers the answer people chose"
        return _pairs_headline(rows["reward"], active, metrics.ACCURACY, metrics.EVAL_ACCURACY, learned)
    if status.get("kind") in ("compare", "sweep") and (status.get("step") or state == "finished"):
        return {"tone": "none", "text": f"{message}." if active else "Done: the results are in the Scores tab."}
    if active:
        return {"tone": "none", "text": "Getting ready: loading the models."}
    return {"tone": "none", "text": "This run logged no training."}


def _mean(rows: Sequence[dict], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if values else None


def _pairs_headline(rows: list[dict], active: bool, key: str, eval_key: str, learned: str) -> dict[str, str]:
    held_out, ceiling = latest(rows, eval_key), latest(rows, metrics.LABEL_CEILING)
    logged = [row for row in rows if row.get(key) is not None]
    accuracy = held_out if held_out is not None else _mean(logged[-LAST_ROWS:], key)
    if accuracy is None:
        return {"tone": "none", "text": "The first steps are under way."}
    where = "held-out pairs" if held_out is not None else "the latest training pairs"
    limit = f"; the noise in the labels allows about {percent(ceiling)}" if ceiling else ""
    facts = f"{learned} in {percent(accuracy)} of {where} (guessing is 50 %{limit})."
    if accuracy < 0.55:
        return {"tone": "wait", "text": f"{'Not yet' if active else 'It did not learn'}: {facts}"}
    return {"tone": "good", "text": f"{'Yes, it is learning' if active else 'It learned'}: {facts}"}


def _ppo_headline(rows: list[dict], active: bool) -> dict[str, str]:
    logged = [row for row in rows if row.get(metrics.SCORE) is not None]
    if len(logged) < 2:
        return {"tone": "none", "text": "The first answers are being written and scored."}
    half = len(logged) // 2
    first = _mean(logged[: min(FIRST_ROWS, half)], metrics.SCORE)
    last = _mean(logged[-min(LAST_ROWS, half) :], metrics.SCORE)
    spread = _mean(logged, metrics.SCORE_STD) or abs(last - first) or 1.0
    kl, episodes = latest(logged, metrics.KL), logged[-1][metrics.EPISODE]
    away = f"; KL from the base model: {number(kl, 1)} nats per answer" if kl is not None else ""
    facts = f"the average score went from {number(first, 2)} to {number(last, 2)} in {episodes:,} episodes{away}."
    if last - first > CLEAR * spread:
        return {"tone": "good", "text": f"{'Yes, it is learning' if active else 'It learned'}: {facts}"}
    if last - first < -CLEAR * spread:
        return {"tone": "bad", "text": f"{'No' if active else 'It did not learn'}: {facts}"}
    return {"tone": "wait", "text": f"{'Not clearly yet' if active else 'It hardly learned'}: {facts}"}
