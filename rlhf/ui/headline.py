"""Is it learning? The sentence at the top of the live view, from a run's status and its logged numbers.

No verdict rests on a number that chance alone could have made: each has a 95 % interval, and where that leaves it open
the sentence says so.
"""

import math
from collections.abc import Sequence

from scipy import stats

from rlhf import metrics
from rlhf.compare.stats import Interval, accuracy
from rlhf.config import BadInput
from rlhf.figures.curves import first_and_last, latest, recent
from rlhf.kinds import KINDS
from rlhf.runs.directory import ACTIVE
from rlhf.runs.divergence import WHAT_TO_DO, warning_signs
from rlhf.words import count, number, percent, signed


SMALL = 0.2
"""A change of the mean score by less than this share of the scores' standard deviation is none worth the name."""
BARELY = 0.55
"""An accuracy below this is hardly more than guessing."""
ENDED_BADLY = {"failed": "The run failed", "diverged": "Training diverged", "interrupted": "The run was interrupted"}


def headline(status: dict, rows: dict[str, list[dict]]) -> dict[str, str]:
    """{"tone": "good", "wait", "short", "bad" or "none", "text": a sentence, "details": what it rests on}.

    Args:
        status: the run's.
        rows: the logged lines of its reward, PPO and DPO stages.
    """
    said = _verdict(status, rows)
    if status.get("state") == "stopped" and said["text"] != status.get("message"):  # it says what was kept
        said["details"] = f"{status.get('message') or ''} {said['details']}".strip()
    return said


def warning(status: dict, rows: list[dict]) -> str:
    """What looks wrong in the newest update of PPO and what to do, with settings under their labels; empty if nothing.

    A run that ended badly says so in its headline.
    """
    read = (metrics.SCORE, metrics.SCORE_STD, metrics.OBJECTIVE_SCORE, metrics.KL_PENALTY)
    read += (metrics.MEAN_LENGTH, metrics.CLIPPED_RATIO)
    first, last = (
        next((row for row in way if all(row.get(name) is not None for name in read)), None)
        for way in (rows, reversed(rows))
    )
    if first is None or status.get("state") in ENDED_BADLY:
        return ""
    signs, kind = warning_signs(last, first), KINDS.get(str(status.get("kind")))
    told = f"{next(iter(signs.values()))} {WHAT_TO_DO}" if signs else ""
    return BadInput(told).with_labels(kind.front if kind else {})


def _verdict(status: dict, rows: dict[str, list[dict]]) -> dict[str, str]:
    state, message = status.get("state"), status.get("message") or ""
    active = state in ACTIVE
    if state in ENDED_BADLY:
        kept = "What was logged until then is shown below." if any(rows.values()) else ""
        return _said("bad", f"{ENDED_BADLY[state]}. {message}", kept)
    if status.get("kind") == "live" and rows.get("ppo"):
        text = status.get("verdict") or "It has learned a little: choose in the Feedback tab which answers are better."
        return _said("none", text, "The reward model goes on learning too, so only scores of one state compare.")
    if rows.get("ppo"):
        return _ppo_headline(rows["ppo"], active)
    if rows.get("dpo"):
        learned = "the answer people chose became likelier than the other"
        return _pairs_headline(rows["dpo"], active, metrics.DPO_ACCURACY, metrics.DPO_EVAL_ACCURACY, learned)
    if rows.get("reward"):
        learned = "it prefers the answer people chose"
        return _pairs_headline(rows["reward"], active, metrics.ACCURACY, metrics.EVAL_ACCURACY, learned)
    compares = status.get("kind") in ("compare", "sweep")
    if active:
        if status.get("preparing"):
            answered, asked = status["preparing"]
            text = f"Getting ready: the base model has answered {count(answered)} of {count(asked)} questions."
            return _said("none", text, "What our choices say of these answers is learned as well.")
        begun = compares and status.get("step")
        return _said("none", f"{message}." if begun else "Getting ready: loading the models.")
    if state == "stopped":
        return _said("none", message)
    return _said("none", "Done: the results are in the Scores tab." if compares else "Nothing was trained here.")


def _said(tone: str, text: str, details: str = "") -> dict[str, str]:
    return {"tone": tone, "text": " ".join(text.split()), "details": details}


def margin(values: Sequence[float], *means: int) -> float:
    """Half of the 95 % interval of the sum or difference of means of so many consecutive values each.

    How much one value jumps is read off the differences between neighbours, which a trend hardly touches (von Neumann
    1941): their mean square is twice the variance of a value, with about two thirds as many degrees of freedom.
    Infinite where there are too few values to tell.
    """
    steps = [later - earlier for earlier, later in zip(values, values[1:], strict=False)]
    if len(steps) < 2:
        return math.inf
    variance = sum(step**2 for step in steps) / len(steps) / 2
    return float(stats.t.ppf(0.975, len(steps) * 2 / 3)) * math.sqrt(variance * sum(1 / count for count in means))


def _pairs_headline(rows: list[dict], active: bool, key: str, eval_key: str, learned: str) -> dict[str, str]:
    told = _held_out(rows, eval_key) or _on_training_pairs(rows, key)
    if told is None:
        return _said("none", "The first steps are under way.")
    share, where = told
    ceiling = latest(rows, metrics.LABEL_CEILING)
    facts = f"{learned} in {percent(share.value)} of {where}."
    limit = f" The noise in the labels allows about {percent(ceiling)}." if ceiling else ""
    if agreed := latest(rows, metrics.AGREEMENT):
        limit = f" Two people choose alike in {percent(agreed)}."
    details = f"Guessing is right in 50 %. 95 % interval: {percent(share.low)} to {percent(share.high)}.{limit}"
    if not math.isfinite(share.low):
        details = f"Guessing is right in 50 %.{limit}"
    if share.low > 0.5 and share.value >= BARELY:
        return _said("good", f"{'Yes, it is learning' if active else 'It learned'}: {facts}", details)
    if share.high < BARELY:
        return _said("wait", f"{'Not so far' if active else 'It did not learn'}: {facts}", details)
    return _said("short", f"{_undecided(active)}: {facts}", details)


def _held_out(rows: list[dict], key: str) -> tuple[Interval, str] | None:
    """The newest accuracy on held-out pairs."""
    share, count = latest(rows, key), None
    for row in rows:
        if metrics.EVAL_PAIRS in row:
            count = row[metrics.EVAL_PAIRS]
        elif key in row and "eval_runtime" in row:  # TRL logs no count, only how long it took and how fast it was
            count = round(row["eval_runtime"] * row["eval_samples_per_second"])
    if share is None or not count:
        return None
    return accuracy(round(share * count), count), f"{count:,} held-out pairs"


def _on_training_pairs(rows: list[dict], key: str) -> tuple[Interval, str] | None:
    """The accuracy on the pairs of the latest steps, before it has learned from them."""
    share = recent(rows, key)
    if share is None:
        return None
    _, last = first_and_last(rows, key)
    room = margin([row[key] for row in rows if row.get(key) is not None], len(last))
    low, high = (max(0.0, share - room), min(1.0, share + room)) if math.isfinite(room) else (-room, room)
    return Interval(share, low, high), "the latest training pairs"


def _undecided(active: bool) -> str:
    return "Too early to tell" if active else "Too short to tell"


def _ppo_headline(rows: list[dict], active: bool) -> dict[str, str]:
    logged = [row for row in rows if row.get(metrics.SCORE) is not None]
    if not logged and active:
        return _said("none", "The first answers are being written and scored.")
    if len(logged) < 2:
        return _said("short", f"{_undecided(active)}: {len(logged)} update of PPO is not enough to see a change.")
    first, last = first_and_last(logged, metrics.SCORE)
    before, after = sum(first) / len(first), recent(logged, metrics.SCORE)
    change = after - before
    room = margin([row[metrics.SCORE] for row in logged], len(first), len(last))
    small = SMALL * (recent(logged, metrics.SCORE_STD) or 0.0)
    kl = recent(logged, metrics.KL)
    away = f" The answers are {number(kl, 1)} nats (KL) away from the base model’s." if kl is not None else ""
    updates = "update" if len(last) == 1 else f"{len(last)} updates"
    details = f"Averages of the first and of the last {updates}, of {len(logged):,} in all.{away}"
    went = f"the average score went from {number(before, 2)} to {number(after, 2)}"
    if math.isfinite(room):
        between = f"{signed(change - room)} to {signed(change + room)}"
        details = f"Change {signed(change)}, 95 % interval {between}. {details}"
    if change > room and change + room > small:
        return _said("good", f"{'Yes, it is learning' if active else 'It learned'}: {went}.", details)
    if change < -room and change - room < -small:
        return _said("bad", f"{'No, it is getting worse' if active else 'It got worse'}: {went}.", details)
    if abs(change) + room <= max(small, 1e-9):
        return _said("wait", f"{'Not so far' if active else 'It hardly learned'}: {went}.", details)
    return _said("short", f"{_undecided(active)}: {went}, which can be chance.", details)
