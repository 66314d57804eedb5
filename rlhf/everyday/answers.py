"""Good and bad answers to the world's questions, and the asker's reactions to them: the base model's training data.

The reactions are like the replies below answers on the web.
"""

import random
from collections.abc import Callable

from rlhf.everyday.world import Outside, Subject, Talk, Topic, load_world


KINDS = {
    "good": 0.36,
    "off_topic": 0.16,
    "short": 0.08,
    "rambling": 0.09,
    "rude": 0.09,
    "evasive": 0.07,
    "fawning": 0.06,
    "careless": 0.05,
    "boast": 0.04,
}
"""Kinds of answers to a question about a topic, with their shares of the corpus."""
REACTION_RATE = 0.7
"""Share of dialogs with a reaction of the asker."""


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:].rstrip(".")


def _advice(tips: tuple[str, ...], count: int, rng: random.Random) -> str:
    """One or two tips, phrased as people would."""
    manners = load_world().manners
    if count == 1:
        tip = rng.choice(tips)
        return tip if rng.random() < 0.4 else rng.choice(manners["single"]).format(tip=_lower(tip))
    first, second = rng.sample(tips, 2)
    if rng.random() < 0.3:
        return f"{first} {second}"
    slots = {"A": first.rstrip("."), "a": _lower(first), "B": second.rstrip("."), "b": _lower(second)}
    return rng.choice(manners["double"]).format(**slots)


def _polite(tips: tuple[str, ...], rng: random.Random) -> str:
    """One or two tips, sometimes with a greeting before and a good wish after."""
    manners = load_world().manners
    parts = [rng.choice(manners["openers"])] if rng.random() < 0.4 else []
    parts.append(_advice(tips, 1 if rng.random() < 0.4 else 2, rng))
    if rng.random() < 0.25:
        parts.append(rng.choice(manners["closers"]))
    return " ".join(parts)


def _good(topic: Topic, rng: random.Random) -> str:
    return _polite(topic.tips, rng)


def _off_topic(topic: Topic, rng: random.Random) -> str:
    others = [other for other in load_world().topics if other is not topic]
    related = [other for other in others if other.domain == topic.domain]
    return _polite(rng.choice(related if rng.random() < 0.4 else others).tips, rng)


def _short(topic: Topic, rng: random.Random) -> str:
    return rng.choice(topic.brief)


def _rambling(topic: Topic, rng: random.Random) -> str:
    filler = rng.sample(load_world().manners["rambling"], 2)
    tip = rng.choice(topic.tips)
    again = rng.choice(load_world().manners["single"]).format(tip=_lower(tip))
    return " ".join([tip, filler[0], again] if rng.random() < 0.6 else [filler[0], tip, filler[1]])


def _rude(topic: Topic, rng: random.Random) -> str:
    manners = load_world().manners
    if rng.random() < 0.5:
        return rng.choice(manners["rude"])
    return f"{rng.choice(manners['rude_openers'])} {_advice(topic.tips, 1, rng)}"


def _evasive(topic: Topic, rng: random.Random) -> str:
    return rng.choice(load_world().manners["evasive"]).format(doing=topic.doing)


def _fawning(topic: Topic, rng: random.Random) -> str:
    manners = load_world().manners
    tail = _advice(topic.tips, 1, rng) if rng.random() < 0.6 else rng.choice(manners["fawning_closers"])
    return f"{rng.choice(manners['fawning'])} {tail}"


def _careless(topic: Topic, rng: random.Random) -> str:
    if rng.random() < 0.5:
        return _polite(topic.careless, rng)
    return f"{rng.choice(topic.tips)} {rng.choice(topic.careless)}"


def _boast(topic: Topic, rng: random.Random) -> str:
    boast = rng.choice(load_world().manners["boasts"])
    advice = _advice(topic.tips, 1, rng)
    return f"{boast} {advice}" if rng.random() < 0.5 else f"{advice} {boast}"


WRITERS: dict[str, Callable[[Topic, random.Random], str]] = {
    "good": _good,
    "off_topic": _off_topic,
    "short": _short,
    "rambling": _rambling,
    "rude": _rude,
    "evasive": _evasive,
    "fawning": _fawning,
    "careless": _careless,
    "boast": _boast,
}


def _write_outside(subject: Outside, rng: random.Random) -> tuple[str, str]:
    manners = load_world().manners
    kind = rng.choices(("honest", "made_up", "evasive", "rude"), (0.4, 0.36, 0.12, 0.12))[0]
    if kind == "honest":
        return rng.choice(manners["offers"]).format(about=subject.about), kind
    if kind == "made_up":
        return rng.choice(subject.fake), kind
    if kind == "evasive":
        return rng.choice([text for text in manners["evasive"] if "{" not in text]), kind
    return rng.choice(manners["rude"]), kind


def _write_talk(subject: Talk, rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.6:
        return rng.choice(subject.good), "good"
    return rng.choice(subject.bad), "rude"


def write_answer(subject: Subject, rng: random.Random) -> tuple[str, str]:
    """An answer to a question about `subject`, and its kind."""
    if isinstance(subject, Outside):
        return _write_outside(subject, rng)
    if isinstance(subject, Talk):
        return _write_talk(subject, rng)
    kind = rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    return WRITERS[kind](subject, rng), kind


def _reactions(kind: str) -> list[str]:
    return load_world().manners["thanks_for_good" if kind == "good" else f"after_{kind}"]


def write_reaction(kind: str, rng: random.Random) -> str:
    """The asker's reaction to an answer of this kind."""
    return rng.choice(_reactions(kind))


def plain_reaction(kind: str) -> str:
    """The reaction to an answer of this kind, always in the same words."""
    return _reactions(kind)[0]
