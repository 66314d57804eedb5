"""The embedded world: everyday topics, what people ask about them, and which prompts belong to which split.

All texts are written by hand, as TOML in `assets/everyday/`; this file loads them and combines them into questions.
The world is small enough to be known completely, which makes an exact gold scorer (`rubric.py`) possible.
"""

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path


ASSETS = Path(__file__).resolve().parents[2] / "assets"
SPLITS = ("reward", "ppo", "test", "unseen")
"""reward, ppo, test: disjoint prompts about the same topics. unseen: topics that only pre-training has seen."""
TYPOS = 12
"""Questions per topic that are asked a second time with a typo."""


@dataclass(frozen=True)
class Topic:
    """Something people need help with, the tips that help, and the advice that does not."""

    name: str
    do: str
    """Completes "How do I ...?"."""
    doing: str
    """Completes "I need help with ..."."""
    ask: tuple[str, ...]
    tips: tuple[str, ...]
    careless: tuple[str, ...]
    brief: tuple[str, ...]
    domain: str
    unseen: bool


@dataclass(frozen=True)
class Outside:
    """A subject that the world knows nothing about: the honest reply says so."""

    about: str
    ask: tuple[str, ...]
    fake: tuple[str, ...]


@dataclass(frozen=True)
class Talk:
    """Small talk, with good and bad replies."""

    ask: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]


Subject = Topic | Outside | Talk


@dataclass(frozen=True)
class World:
    """Topics, subjects outside the world, small talk, and phrases of every manner of answering."""

    topics: tuple[Topic, ...]
    outside: tuple[Outside, ...]
    talk: tuple[Talk, ...]
    manners: dict[str, tuple[str, ...]]


def _read(name: str) -> dict:
    return tomllib.loads((ASSETS / "everyday" / f"{name}.toml").read_text(encoding="utf-8"))


def _tuples(entry: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


DOMAINS = (
    "cooking", "kitchen", "garden", "repairs", "cleaning", "pets",
    "travel", "study", "body", "money", "tech", "people",
)  # fmt: skip


@cache
def load_world() -> World:
    """Read the world from `assets/everyday/`. Every ninth topic is held out of reward training and PPO."""
    entries = [(domain, entry) for domain in DOMAINS for entry in _read(domain)["topic"]]
    topics = tuple(
        Topic(**_tuples(entry), domain=domain, unseen=index % 9 == 4) for index, (domain, entry) in enumerate(entries)
    )
    outside = _read("outside")
    return World(
        topics=topics,
        outside=tuple(Outside(**_tuples(entry)) for entry in outside["outside"]),
        talk=tuple(Talk(**_tuples(entry)) for entry in outside["talk"]),
        manners=_tuples(_read("manners")),
    )


def add_typo(text: str, rng: random.Random) -> str:
    """Swap, drop or double one letter in one of the longer words."""
    words = text.split()
    index = rng.choice([i for i, word in enumerate(words) if len(word) > 3] or [0])
    word, at = words[index], rng.randrange(1, max(2, len(words[index]) - 2))
    typos = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :],
    )
    words[index] = rng.choice(typos)
    return " ".join(words)


def _rng(subject: Subject) -> random.Random:
    return random.Random(subject.ask[0])  # unlike hash(), the seed of a string is the same in every process


def questions(subject: Subject) -> list[str]:
    """All ways of asking about `subject`, distinct, in a fixed random order."""
    rng, asked = _rng(subject), list(subject.ask)
    if isinstance(subject, Topic):
        frames = load_world().manners["questions"]
        asked += [frame.format(do=subject.do, doing=subject.doing) for frame in frames]
        typos = TYPOS
    else:
        asked += [question.lower().rstrip("?.!") for question in subject.ask]
        typos = len(subject.ask)
    asked += [add_typo(question, rng) for question in rng.sample(asked, typos)]
    asked = list(dict.fromkeys(asked))
    rng.shuffle(asked)
    return asked


@cache
def prompt_splits() -> dict[str, tuple[str, ...]]:
    """Split -> its questions; those of "corpus" are seen by pre-training only.

    A seen topic's questions go to reward training (50 %), PPO (30 %) and test (20 %); an unseen topic's to the corpus
    (67 %) and the split "unseen". Pre-training reads all splits but "test" and "unseen".
    """
    world, taken = load_world(), set()
    splits: dict[str, list[str]] = {name: [] for name in (*SPLITS, "corpus")}
    for subject in (*world.topics, *world.outside, *world.talk):
        asked = [question for question in questions(subject) if question not in taken]
        taken.update(asked)
        if isinstance(subject, Topic) and subject.unseen:
            cuts = {"corpus": 0.67, "unseen": 1.0}
        else:
            cuts = {"reward": 0.5, "ppo": 0.8, "test": 1.0}
        start = 0
        for name, share in cuts.items():
            end = round(share * len(asked))
            splits[name] += asked[start:end]
            start = end
    return {name: tuple(asked) for name, asked in splits.items()}


@cache
def _subjects() -> dict[str, Subject]:
    world = load_world()
    subjects = {}
    for subject in (*world.topics, *world.outside, *world.talk):
        for question in questions(subject):
            subjects.setdefault(question, subject)
    return subjects


def subject_of(question: str) -> Subject | None:
    """What a question is about; None for a question that is not one of the world's own."""
    return _subjects().get(question.strip())
