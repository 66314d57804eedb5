"""Where choices are kept: a folder of files that only grow.

    store.json      the model whose answers are compared, written once
    pairs.jsonl     a prompt and two answers per line, in the order in which people see them; those from Chat come
                    with the first vote
    choices.jsonl   one line per choice, on disk before it is acknowledged; taking one back is a line too
    live.json       the run that learns from these choices while they are made, if there is one

Several processes may write at once, under one lock. A line that was cut off when a process was killed was never
acknowledged, and does not count.
"""

import json
import os
import secrets
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from rlhf.config import BadInput
from rlhf.runs.files import read_json, write_json


CHOICES = ("a", "b", "tie", "skip")
EVERY = 8
"""One pair in so many is put to everybody, to see how far people agree."""
RESERVED_SECONDS = 300.0
"""For so long a pair that somebody is looking at is not given to others."""
BY_BASE = frozenset({"base"})
"""Who answers both sides of a pair, as long as nobody asks for others."""
IMPORTED = "imported"
"""Who made the choices that were imported."""
MOST_PAIRS = 50_000
"""In one store, which is held in memory."""
MOST_CHARACTERS = 20_000
"""Of a prompt or an answer that is imported."""
FEWEST = 5
"""Choices that prefer an answer, below which nothing can be learned and held out."""
FIRST_CHOICES = 20
"""Choices after which people are asked what tells most, in the light of them."""
HELD_OUT = 0.2
"""Share of the prompts whose choices are held out from training: of a large data set a tenth is plenty."""


class ChosenBefore(BadInput):
    """A person has chosen otherwise for this pair before."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    id: str
    prompt: str | list[dict[str, str]]
    """As the model read it: a text, or the messages of a conversation."""
    question: str
    """The prompt as people read it."""
    a: str
    b: str
    models: tuple[str, str]
    """Which model gave `a` and which `b`."""
    shared: bool = False
    """Whether everybody is asked about it."""
    chat: dict | None = None
    """Of two answers from Chat, which nobody else is asked about: the `run` that was shown, whether the vote was
    `blind`, how the answers were sampled, and of both `sides`, in order, the model and its score."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What one person chose of one pair."""

    id: str
    """The pair's."""
    person: str
    choice: Literal["a", "b", "tie", "skip"]
    time: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class _Line(Choice):
    """What a line of choices.jsonl says."""

    choice: Literal["a", "b", "tie", "skip"] | None
    """None takes back what was chosen."""


_LINES = {"pairs.jsonl": TypeAdapter(Pair), "choices.jsonl": TypeAdapter(_Line)}


class Store:
    """The pairs and choices in a folder, kept up to date with what other processes write.

    Raises:
        BadInput: the folder is no store, or one of another model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.pairs: dict[str, Pair] = {}
        """By id, in the order in which they were made."""
        self.order: list[str] = []
        """Ids of pairs that say more than the others and come first; what all are asked about keeps its order."""
        # Sorted and counted as they are read: a class makes tens of thousands of choices, and after each of them a
        # page asks for the next pair, and how all choices stand. Of each choice little more is held than its time.
        self._asked: dict[Set[str], dict[str, Pair]] = defaultdict(dict)  # by models and id, without those of Chat
        self._judges: dict[str, dict[str, str]] = defaultdict(dict)  # by pair and person, what was chosen
        self._times: dict[str, dict[str, float]] = defaultdict(dict)  # by person and pair, when, the latest last
        self._tally: Counter[tuple[bool, tuple[str, str], str, str]] = Counter()  # from Chat, models, person, choice
        self._judgements: Counter[tuple[str, ...]] = Counter()  # see `judgements`
        self._reserved: dict[str, tuple[str, float]] = {}
        self._read_to = {"pairs.jsonl": (0, b""), "choices.jsonl": (0, b"")}  # offset, and the line before it
        self._thread = threading.RLock()
        self._lock = FileLock(self.path / ".lock")
        if not (self.path / "store.json").exists():
            raise BadInput(f"{self.path} holds no choices; name the folder that `feedback next` has made.")
        self._read()

    @classmethod
    def open(cls, path: str | Path, model: str, revision: str) -> "Store":
        """The store in a folder, made if there is none, for pairs of this model (`models.revision` of its weights).

        Raises:
            BadInput: it holds the answers of another model, or cannot be made.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with FileLock(path / ".lock"):
                if not (path / "store.json").exists():
                    if any(entry.name != ".lock" for entry in path.iterdir()):
                        raise BadInput(f"{path} holds other files; name a new folder for the choices.")
                    write_json(path / "store.json", {"model": model, "revision": revision, "created": time.time()})
        except OSError as error:
            raise BadInput(f"The folder {path} cannot be made ({error.strerror}); name another.") from error
        store = cls(path)
        if store.info()["revision"] != revision:
            raise BadInput(
                f"{path} holds choices between answers of {store.info()['model']}, with other weights than {model} "
                "has now; name another folder, or move this one away."
            )
        return store

    def info(self) -> dict:
        """What `store.json` says.

        Raises:
            BadInput: it is damaged.
        """
        found = read_json(self.path / "store.json")
        if not found.keys() >= {"model", "revision"}:
            raise BadInput(f"{self.path / 'store.json'} cannot be read; name another folder, or move this one away.")
        return found

    # Writing and reading ---------------------------------------------------------------------------------------------

    def _append(self, name: str, rows: Iterable[dict]) -> None:
        """Append lines and wait until they are on disk. The lock is held."""
        path = self.path / name
        with path.open("ab") as file:
            torn = file.tell() and not _ends_with_newline(path)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.write((b"\n" if torn else b"") + text.encode())
            file.flush()
            os.fsync(file.fileno())

    def _rewrite(self, name: str, rows: Iterable[Pair | Choice]) -> None:
        """Write a file anew, with less in it. The lock is held."""
        temporary = self.path / f".{name}"
        lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(self.path / name)

    def _read(self) -> None:
        """Take in what has been appended since the last time."""
        with self._thread:
            self._read_pairs()
            for line in self._new_lines("choices.jsonl"):
                if line.id not in self.pairs:
                    self._read_pairs()  # another process has added it since
                if pair := self.pairs.get(line.id):
                    self._take(pair, line)

    def _read_pairs(self) -> None:
        for pair in self._new_lines("pairs.jsonl"):
            self.pairs[pair.id] = pair
            if not pair.chat:
                self._asked[frozenset(pair.models)][pair.id] = pair

    def _take(self, pair: Pair, line: _Line) -> None:
        """Let a line of choices.jsonl take the place of what the person has chosen for this pair before."""
        person = sys.intern(line.person)  # the same few over and over
        judges, times = self._judges[pair.id], self._times[person]
        kind = bool(pair.chat), pair.models, person
        self._judgements[_unit(judges)] -= 1
        if before := judges.pop(person, None):
            del times[pair.id]  # so that the latest comes last
            self._tally[*kind, before] -= 1
        if line.choice is not None:
            judges[person], times[pair.id] = line.choice, line.time
            self._tally[*kind, line.choice] += 1
        self._judgements[_unit(judges)] += 1

    def _new_lines(self, name: str) -> Iterator:
        path = self.path / name
        if not path.exists():
            return
        with path.open("rb") as file:
            offset, last = self._read_to[name]
            file.seek(offset - len(last))
            if file.read(len(last)) != last:  # some have been deleted, see `forget`; an inode may come back
                if name == "choices.jsonl":
                    for found in (self._judges, self._times, self._tally, self._judgements):
                        found.clear()
                else:
                    self.pairs.clear()
                    self._asked.clear()
                offset, last = file.seek(0), b""
            for line in file:
                if not line.endswith(b"\n"):
                    break
                offset, last = offset + len(line), line
                with suppress(ValidationError):  # cut off when a process was killed, or written by somebody else
                    yield _LINES[name].validate_json(line)
            self._read_to[name] = offset, last

    # Pairs -----------------------------------------------------------------------------------------------------------

    def add(self, rows: Iterable[tuple[str | list, str, str, str, tuple[str, str]]]) -> list[Pair]:
        """Add pairs (prompt, question, a, b, models); one in `EVERY` is for everybody."""
        with self._thread, self._lock:
            self._read()
            count = len(self.pairs)
            made = [
                Pair(secrets.token_hex(8), *row, shared=(count + number) % EVERY == EVERY - 1)
                for number, row in enumerate(rows)
            ]
            self._append("pairs.jsonl", map(asdict, made))
            self._read()
        return made

    def next(self, person: str, count: int = 1, models: Set[str] = BY_BASE) -> list[Pair]:
        """The next pairs of these models for a person: each eighth one that all are asked about, else a fresh one.

        When there are no fresh ones, those that the fewest people have judged. Fewer than `count` if the person has
        judged all.
        """
        with self._thread:
            self._read()
            done, asked = self._times.get(person, {}), self._asked.get(frozenset(models), {})
            mine = {pair_id: pair for pair_id, pair in asked.items() if pair_id not in done}
            shared = [pair for pair in mine.values() if pair.shared]
            order = (mine[pair_id] for pair_id in dict.fromkeys([*self.order, *mine]) if pair_id in mine)
            rest = [pair for pair in order if not pair.shared and not self._held(pair.id, person)]
            rest.sort(key=lambda pair: len(self._judges[pair.id]))
            given: list[Pair] = []
            for number in range(len(done), len(done) + count):
                queues = (shared, rest) if number % EVERY == EVERY - 1 else (rest, shared)
                pair = next((pair for queue in queues for pair in queue if pair not in given), None)
                if pair is None:
                    break
                given.append(pair)
            self._reserved |= dict.fromkeys((pair.id for pair in given), (person, time.time()))
            return given

    def _held(self, pair_id: str, person: str | None = None) -> bool:
        """Whether somebody else is looking at the pair, and has not judged it yet."""
        by, since = self._reserved.get(pair_id, (person, 0.0))
        return by != person and time.time() - since < RESERVED_SECONDS and by not in self._judges[pair_id]

    def has_room(self) -> bool:
        """Whether more pairs may be added."""
        return len(self.pairs) < MOST_PAIRS

    def waiting(self, models: Set[str] = BY_BASE) -> int:
        """Pairs of these models that nobody has judged yet or is looking at."""
        with self._thread:
            self._read()
            asked = self._asked.get(frozenset(models), {})
            return sum(not self._judges[pair_id] and not self._held(pair_id) for pair_id in asked)

    # Choices ---------------------------------------------------------------------------------------------------------

    def choose(self, pair_id: str, choice: str, person: str) -> Choice:
        """Record a choice; it is on disk when this returns. The same choice again changes nothing.

        Raises:
            BadInput: no such pair was ever shown, or the choice is none.
            ChosenBefore: the person has chosen otherwise before.
        """
        if choice not in CHOICES:
            raise BadInput(f"A choice is one of {', '.join(CHOICES)}, not {str(choice)[:40]!r}.")
        if not isinstance(person, str) or not 0 < len(person) <= 64:
            raise BadInput("A person's name has 1 to 64 characters.")
        with self._thread, self._lock:
            self._read()
            if pair_id not in self.pairs:
                raise BadInput(f"There is no pair {str(pair_id)[:40]!r} here; choose between those that were shown.")
            before = self._judges[pair_id].get(person)
            if before not in (None, choice):
                raise ChosenBefore(
                    f"{person} has chosen {before!r} for the pair {pair_id} before; take that back first."
                )
            if before is None:
                self._append("choices.jsonl", [asdict(Choice(pair_id, person, choice, time.time()))])
                self._read()
            return self._choice(pair_id, person)

    def vote(self, judged: Iterable[tuple[Pair, str]], person: str) -> None:
        """Record a person's choices between answers from Chat, as `choose` does; new pairs are added.

        Raises:
            BadInput: the store is full.
            ChosenBefore: the person has chosen otherwise before.
        """
        with self._thread, self._lock:
            self._read()
            new = [pair for pair, _ in judged if pair.id not in self.pairs]
            if len(self.pairs) + len(new) > MOST_PAIRS:
                raise BadInput(f"There are {MOST_PAIRS:,} pairs, which is the most; this vote was not kept.")
            self._append("pairs.jsonl", map(asdict, new))
            for pair, choice in judged:
                self.choose(pair.id, choice, person)

    def undo(self, person: str, pair_id: str | None = None) -> Pair | None:
        """Take back a person's choice for a pair, by default the latest; returns the pair, which comes next again.

        None if there is no such choice, also where it was taken back before.
        """
        with self._thread, self._lock:
            self._read()
            mine = self._times.get(person, {})
            if not mine or pair_id not in (None, *mine):
                return None
            taken = pair_id or next(reversed(mine))
            self._append("choices.jsonl", [asdict(_Line(taken, person, None, time.time()))])
            self._read()
            self._reserved[taken] = person, time.time()
            return self.pairs[taken]

    def forget(self, person: str | None) -> int:
        """Delete the choices of a person, or with None of all, from the disk, and what that person asked in Chat;
        returns how many choices there were."""
        with self._thread, self._lock:
            made = self.choices()
            kept = [choice for choice in made if person not in (None, choice.person)]
            gone, judged = len(made) - len(kept), {choice.id for choice in kept}
            if gone:
                self._rewrite("choices.jsonl", kept)
            asked = [pair for pair in self.pairs.values() if not pair.chat or pair.id in judged]
            if len(asked) < len(self.pairs):
                self._rewrite("pairs.jsonl", asked)
            self._read()
            return gone

    def choices(self, chat: bool = True) -> list[Choice]:
        """All choices that stand, the oldest first; with `chat` false without those of Chat."""
        with self._thread:
            self._read()
            made = [
                self._choice(pair_id, person)
                for person, times in self._times.items()
                for pair_id in times
                if chat or not self.pairs[pair_id].chat
            ]
            return sorted(made, key=lambda one: one.time)

    def _choice(self, pair_id: str, person: str) -> Choice:
        return Choice(pair_id, person, self._judges[pair_id][person], self._times[person][pair_id])

    def votes(self) -> list[tuple[Pair, Choice]]:
        """The choices of Chat that stand, with their pairs, in the order in which these were first voted on."""
        with self._thread:
            self._read()
            voted = (pair for pair in self.pairs.values() if pair.chat)
            return [(pair, self._choice(pair.id, person)) for pair in voted for person in self._judges[pair.id]]

    def last_of(self, person: str) -> str | None:
        """The pair for which a person has chosen last, without those of Chat."""
        with self._thread:
            self._read()
            latest_first = reversed(self._times.get(person, {}))
            return next((pair_id for pair_id in latest_first if not self.pairs[pair_id].chat), None)

    def choice(self, pair_id: str, person: str) -> Choice | None:
        """What a person has chosen for a pair."""
        with self._thread:
            self._read()
            return self._choice(pair_id, person) if person in self._judges.get(pair_id, {}) else None

    def tally(self, chat: bool = True) -> Counter[tuple[tuple[str, str], str, str]]:
        """How often each person chose what, by the models of the pair: (models, person, choice) -> how many."""
        with self._thread:
            self._read()
            counts: Counter[tuple[tuple[str, str], str, str]] = Counter()
            for (from_chat, *key), number in self._tally.items():
                if number and (chat or not from_chat):
                    counts[tuple(key)] += number
            return counts

    def judgements(self) -> Counter[tuple[str, ...]]:
        """What the judges of one pair chose, sorted and without skips -> of how many pairs."""
        with self._thread:
            self._read()
            return +self._judgements  # those above zero

    # In and out ------------------------------------------------------------------------------------------------------

    def preferences(self, chat: bool = True, only: Iterable[Choice] | None = None) -> list[dict[str, object]]:
        """The `choices`, or only these, as rows `prompt`, `chosen`, `rejected`; ties and skips say no preference."""
        rows = []
        for choice in self.choices(chat) if only is None else only:
            pair = self.pairs[choice.id]
            if choice.choice in ("a", "b"):
                chosen, rejected = (pair.a, pair.b) if choice.choice == "a" else (pair.b, pair.a)
                rows.append({"prompt": pair.prompt, "chosen": chosen, "rejected": rejected})
        return rows

    def copy_to(self, folder: Path, chat: bool = True) -> None:
        """Write the judged pairs and their `choices` as a store of its own, in which nobody can be told by name."""
        choices = self.choices(chat)
        judged = {choice.id for choice in choices}
        names = {person: f"person {number}" for number, person in enumerate({c.person: 0 for c in choices}, start=1)}
        folder.mkdir()
        write_json(folder / "store.json", self.info())
        copy = Store(folder)
        copy._append("pairs.jsonl", (asdict(pair) for pair in self.pairs.values() if pair.id in judged))
        copy._append("choices.jsonl", ({**asdict(choice), "person": names[choice.person]} for choice in choices))

    def take_in(self, text: str) -> int:
        """Import preferences, one JSON object with prompt, chosen and rejected per line: all of them, or none.

        Returns how many of them are new.

        Raises:
            BadInput: a line is no such object; the message numbers the bad lines.
        """
        rows, faults = [], []
        for number, line in enumerate(text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                rows.append(_preference(line))
            except ValueError as error:
                faults.append(f"line {number}: {error}")
        if faults or not rows:
            more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise BadInput(
                f"Nothing was imported ({'; '.join(faults[:3]) + more if faults else 'there is no line'}): each line "
                "must be a JSON object with prompt, chosen and rejected."
            )
        with self._thread, self._lock:
            self._read()
            known = {(pair.question, pair.a, pair.b) for pair in self.pairs.values() if pair.models[0] == IMPORTED}
            made, now = [], time.time()
            for prompt, question, chosen, rejected in rows:
                if (question, chosen, rejected) not in known:
                    known.add((question, chosen, rejected))
                    made.append(Pair(secrets.token_hex(8), prompt, question, chosen, rejected, (IMPORTED, IMPORTED)))
            if made and len(self.pairs) + len(made) > MOST_PAIRS:
                there = f"{MOST_PAIRS:,} pairs are the most, and there are {len(self.pairs):,}"
                raise BadInput(f"Nothing was imported: {there}.")
            self._append("pairs.jsonl", map(asdict, made))
            self._append("choices.jsonl", (asdict(Choice(pair.id, IMPORTED, "a", now)) for pair in made))
            self._read()
        return len(made)


def _unit(judges: dict[str, str]) -> tuple[str, ...]:
    """What the judges of a pair chose, sorted and without skips."""
    return tuple(sorted(choice for choice in judges.values() if choice != "skip"))


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _preference(line: str) -> tuple[str | list, str, str, str]:
    """A line of an import: prompt, the prompt as people read it, chosen, rejected.

    Raises:
        ValueError: what is wrong with it, in words that follow a line's number.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(row, dict):
        raise ValueError("not an object")
    prompt, chosen, rejected = (row.get(name) for name in ("prompt", "chosen", "rejected"))
    question = prompt
    if isinstance(prompt, list):
        if not all(isinstance(message, dict) and message.keys() == {"role", "content"} for message in prompt):
            raise ValueError("the messages of a conversation have a role and a content")
        question = "\n\n".join(str(message["content"]) for message in prompt)
        if not all(isinstance(value, str) for message in prompt for value in message.values()):
            question = None
    texts = (question, chosen, rejected)
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("prompt, chosen and rejected must be texts")
    if max(map(len, texts)) > MOST_CHARACTERS:
        raise ValueError(f"a text of more than {MOST_CHARACTERS:,} characters")
    if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
        raise ValueError("half a character")
    if chosen == rejected:
        raise ValueError("chosen equals rejected")
    return prompt, question.strip(), chosen, rejected
