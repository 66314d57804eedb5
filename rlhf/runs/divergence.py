"""How PPO goes wrong in numbers that are all finite: what looks wrong in an update, and when that is the end.

The page warns by it too, so nothing here loads PyTorch; numbers that are not finite are the matter of `finite.py`.
"""

from rlhf import metrics
from rlhf.config import Diverged
from rlhf.words import number, percent


FAR = 2.0
"""KL in nats per token beyond which an answer is hardly one of the base model's. In good runs it stays below 1, but an
answer of one token may rightly be one that the base model hardly ever gave."""
COSTLY = 10.0
"""KL in nats per answer from which on its price is compared with what it has bought; below, chance decides."""
COLLAPSED = 0.05
"""Share of the first update's entropy below which a policy hardly chooses any more."""
FATAL = {"empty", "same", "entropy", "kl"}
"""The signs that may end a run. Good answers too may run into the limit, or cost more for a while than they gain."""
PERSISTS = 3
"""Updates in a row after which a warning sign is no accident."""


def warning_signs(update: dict, first: dict) -> dict[str, str]:
    """What looks wrong in the metrics of an update of PPO, beside those of the first one: a sentence each, by name.

    The most telling comes first. What the policy did from the start is no sign: some models never end an answer, and
    some always give the same.
    """
    signs = {}
    length, clipped = update[metrics.MEAN_LENGTH], update[metrics.CLIPPED_RATIO]
    if length == 1 and clipped == 0 and first[metrics.MEAN_LENGTH] > 1:
        signs["empty"] = "All answers are empty: the model ends them before the first word."
    elif update.get(metrics.MOST_COMMON_RATIO) == 1 and first.get(metrics.MOST_COMMON_RATIO) != 1:
        signs["same"] = "All answers are the same, whatever is asked."
    entropy, began = update.get(metrics.TOKEN_ENTROPY), first.get(metrics.TOKEN_ENTROPY)
    if entropy is not None and began is not None and entropy < COLLAPSED * began:
        now = percent(entropy / began)
        signs["entropy"] = f"The model hardly varies its words any more: entropy is {now} of what it was."
    kl = update.get(metrics.KL)  # None without a reference
    if kl is not None and kl > FAR * length:
        per_token = number(kl / length, 1)
        signs["kl"] = f"The base model would hardly ever write such answers: KL is {per_token} nats per token."
    elif kl is not None and kl > COSTLY and update[metrics.KL_PENALTY] + _gain(update, first) < 0:
        away = f"KL {number(kl, 1)} nats"
        signs["cost"] = f"The distance from the base model ({away}) costs more than the score has gained."
    if clipped == 1 and first[metrics.CLIPPED_RATIO] < 0.5 and length > 1:
        signs["length"] = "No answer ends by itself any more: all run into response_length."
    return signs


def _gain(update: dict, first: dict) -> float:
    """What the score has gained, on the scale of the KL penalty; a running normalisation hides it in its own mean."""
    raw = (update[metrics.SCORE] - first[metrics.SCORE]) / (first[metrics.SCORE_STD] or 1.0)
    return max(update[metrics.OBJECTIVE_SCORE] - first[metrics.OBJECTIVE_SCORE], raw)


WHAT_TO_DO = "Try a higher kl_coef or a lower learning_rate."
"""Against all of the signs."""


class Watch:
    """Follows the updates of a PPO training, and ends it where it has gone wrong for good.

    That is when PERSISTS updates in a row show a warning sign and score lower than the first, before and after
    normalisation and penalties: what raises the score is what was asked for, however odd it looks, and a reward that
    gives everything the same lowers none.
    """

    def __init__(self) -> None:
        self.first: dict | None = None
        self.wrong = 0
        """Updates in a row that have gone wrong."""

    def look(self, update: dict, at: int) -> None:
        """Look at the metrics of update number `at`.

        Raises:
            Diverged: it was the last straw; the message says what was wrong with it.
        """
        self.first = self.first or update
        signs = warning_signs(update, self.first)
        fatal = [sentence for name, sentence in signs.items() if name in FATAL]
        lower = all(update[score] < self.first[score] for score in (metrics.SCORE, metrics.OBJECTIVE_SCORE))
        self.wrong = self.wrong + 1 if fatal and lower else 0
        if self.wrong == PERSISTS:
            since = at - PERSISTS + 1
            raise Diverged(f"{fatal[0]} Updates {since} to {at} scored lower than the first one. {WHAT_TO_DO}")
