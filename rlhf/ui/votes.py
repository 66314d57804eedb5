"""Votes in Chat: which answer is better? They go into the store of the Feedback tab.

Only what this server has answered can be voted on, by the browser that asked, and a vote counts once however often it
is sent. In a blind vote neither the names nor the scores leave the server before the vote.
"""

import secrets
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from itertools import combinations

from rlhf.config import EVERYDAY, BadInput
from rlhf.feedback import Pair, Store
from rlhf.feedback.desk import Desk
from rlhf.feedback.names import name_of
from rlhf.feedback.votes import Matchup, agreement_with_rewards, matchups
from rlhf.launch import limits
from rlhf.runs.directory import Run
from rlhf.ui import voices
from rlhf.ui.people import answered
from rlhf.words import count, percent


MOST_SERVED = 2_000
"""Questions whose answers wait for a vote; the oldest are forgotten."""
GONE = "These answers can no longer be voted on: the server was restarted, or many have asked since. Ask again."
LETTERS = "abcd"
STAYS = "On this page, which others use too, they train nothing: nobody reads what you have asked."
KNOWN = ("name", "who", "by", "weights", "score", "parts")
"""What is said of an answer only after a blind vote."""


@dataclass(frozen=True)
class Exchange:
    """A question and two to four answers, in the order in which they are shown."""

    person: str
    run: str
    question: str
    prompt: str | list[dict]
    """As all models have read it: a text, or the messages of a conversation."""
    answers: list[dict]
    sampling: voices.Sampling
    blind: bool


_served: OrderedDict[str, Exchange] = OrderedDict()
_serving = threading.Lock()


def serve(exchange: Exchange) -> str:
    """Let these answers be voted on; returns the id by which the vote names them."""
    key = secrets.token_hex(8)
    with _serving:
        _served[key] = exchange
        if len(_served) > MOST_SERVED:
            _served.popitem(last=False)
    return key


# What the page asks for ----------------------------------------------------------------------------------------------


def look(request: dict) -> dict:
    """How the votes stand, and for each of the `ids` of exchanges what was voted, or whether it can be voted on."""

    def shown(run: Run, at: Desk, person: str) -> dict:
        ids = [str(key) for key in request["ids"]][:100]
        found = {key: _vote_of(at.store, key, person) for key in ids} if at.store else {}
        open_to_vote = [key for key in ids if key in _served and _served[key].person == person]
        closed = {key: GONE for key in ids if key not in open_to_vote and not found.get(key)}
        return standing(run, at.store) | {"votes": found, "open": open_to_vote, "closed": closed}

    return answered(request, shown)


def vote(request: dict) -> dict:
    """Record the vote {"id": an exchange's, "choice": the letter of the best answer, or "tie"}."""

    def record(run: Run, at: Desk, person: str) -> dict:
        key, choice = str(request["id"]), str(request["choice"])
        exchange = _served.get(key)
        if exchange is None or (exchange.person, exchange.run) != (person, run.id):
            raise BadInput(GONE)
        if choice not in ("tie", *LETTERS[: len(exchange.answers)]):
            raise BadInput("A vote is for one of the answers, or a tie.")
        store, said = _store(run, at), f"Thanks, {name_of(person)}: your vote is saved."
        before = _vote_of(store, key, person)
        if before is None:
            store.vote(_pairs(key, exchange, choice, store, run), person)
        elif before["choice"] != choice:  # in another window of the same browser
            said = "You had voted on these answers before; that vote stands."
        return standing(run, store) | {"said": said, "votes": {key: _vote_of(store, key, person)}}

    return answered(request, record)


def take_back(request: dict) -> dict:
    """Take back the vote on the exchange {"id": ...}, unless it was blind: it stands, now that the names are out."""

    def undo(run: Run, at: Desk, person: str) -> dict:
        store, key = _store(run, at), str(request["id"])
        if (voted := _vote_of(store, key, person)) and voted["blind"]:
            raise BadInput("A blind vote stands, now that the names are out.")
        for pair_id in _pair_ids(key):
            store.undo(person, pair_id)
        return standing(run, store) | {"said": "Your vote was taken back.", "votes": {key: None}}

    return answered(request, undo)


# The store -----------------------------------------------------------------------------------------------------------


def _store(run: Run, at: Desk) -> Store:
    """The store of a run's desk, which the first vote makes where nobody was asked anything before."""
    if at.store is None:
        from rlhf.models import revision

        model, *_ = voices.base_of(run.base_model())
        at.store = Store.open(at.args.store, at.args.model_name_or_path, revision(model))
    return at.store


def _pair_ids(key: str) -> dict[str, tuple[str, str]]:
    """Ids of an exchange's pairs, with the letters of their answers."""
    return {f"{key}-{one}{other}": (one, other) for one, other in combinations(LETTERS, 2)}


def _pairs(key: str, exchange: Exchange, choice: str, store: Store, run: Run) -> list[tuple[Pair, str]]:
    """A vote as choices: for the best answer over each other one, or a tie of each with each."""
    prompt = exchange.prompt
    of_data = next((pair.prompt for pair in store.pairs.values() if not pair.chat), None)
    if isinstance(of_data, str) or of_data is None and run.base_model() == EVERYDAY:
        prompt = voices.as_text(run, prompt)  # a reward model learns from texts or from conversations, not from both
    judged, given = [], dict(zip(LETTERS, exchange.answers, strict=False))
    for pair_id, (one, other) in _pair_ids(key).items():
        chosen = {"tie": "tie", one: "a", other: "b"}.get(choice)
        if chosen and other in given and given[one]["text"] != given[other]["text"]:
            sides = [{name: given[letter].get(name) for name in KNOWN} for letter in (one, other)]
            chat = {"run": exchange.run, "blind": exchange.blind, "sides": sides, **asdict(exchange.sampling)}
            texts, models = (given[one]["text"], given[other]["text"]), (given[one]["by"], given[other]["by"])
            judged.append((Pair(pair_id, prompt, exchange.question, *texts, models, chat=chat), chosen))
    return judged


def _vote_of(store: Store, key: str, person: str) -> dict | None:
    """What a person has voted, and what is known of each answer after it; None before."""
    found, sides = None, {}
    for pair_id, letters in _pair_ids(key).items():
        made = store.choice(pair_id, person)
        if made is not None:
            chat = store.pairs[pair_id].chat
            sides |= dict(zip(letters, chat["sides"], strict=True))
            choice = dict(zip("ab", letters, strict=True)).get(made.choice, made.choice)
            found = {"choice": choice, "blind": chat["blind"], "sides": sides}
    return found


# How the votes stand -------------------------------------------------------------------------------------------------


def standing(run: Run, store: Store | None) -> dict:
    """Tiles [label, value, what it says] on all votes that people gave while this run was shown."""
    found = matchups(store, run.id) if store else []
    tiles = [_matchup_words(each) for each in sorted(found, key=lambda each: not each.blind)]
    agreed = agreement_with_rewards(store, run.id) if found else None
    if agreed:
        share, votes = agreed
        low, high = percent(share.low), percent(share.high)
        gloss = f"[{low}, {high}] of {_votes(votes)} went to the answer with the higher score."
        tiles.append(("Rewards agree with people", percent(share.value), gloss))
    rule = "All votes given while this run was shown, with 95 % intervals in brackets. "
    rule += STAYS if limits.shared() else "They count as choices, too, which the Feedback tab trains on."
    return {"tiles": tiles, "rule": rule}


def _matchup_words(found: Matchup) -> tuple[str, str, str]:
    one, other = found.models
    more = "That decides it." if found.more == 0 else "Even so far."
    if found.more:
        more = f"About {count(found.more)} more would decide it."
    low, high = percent(found.win_rate.low), percent(found.win_rate.high)
    label = f"{other} better than {one}{', blind' if found.blind else ''}"
    return label, percent(found.win_rate.value), f"[{low}, {high}] of {_votes(found.votes)}. {more}"


def _votes(votes: int) -> str:
    return f"{count(votes)} {'vote' if votes == 1 else 'votes'}"
