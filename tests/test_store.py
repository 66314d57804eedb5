"""The store of choices under any order of events: what was acknowledged stands, whoever writes, reads or dies."""

import json
import multiprocessing
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rlhf.data.load import load_preferences
from rlhf.feedback import Pair, Store
from rlhf.feedback.store import CHOICES, EVERY, IMPORTED, ChosenBefore


PEOPLE = st.sampled_from(["ann", "bob", "eve"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
ROWS = st.lists(st.tuples(TEXTS, TEXTS, TEXTS).filter(lambda row: row[1] != row[2]), min_size=1, max_size=3)
WRITERS = st.integers(0, 1)
NUMBERS = st.integers(0, 10**6)
BY_HAND = b'|x|null|7|[]|["id"]|{}|{"id": [], "person": 1}|{"id": "x", "models": "ab"}|\xff'.split(b"|")
"""Lines that say no choice and no pair."""


class Events(RuleBasedStateMachine):
    """Two processes' stores in one folder, and what must stand in both."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "store")
        self.stores = [Store.open(self.path, "everyday", "0123") for _ in range(2)]
        self.pairs, self.standing = [], {}

    def teardown(self):
        self.folder.cleanup()

    @rule(writer=WRITERS, rows=ROWS)
    def add(self, writer, rows):
        made = self.stores[writer].add((prompt, prompt, a, b, ("base", "ppo")) for prompt, a, b in rows)
        assert [pair.shared for pair in made] == [
            number % EVERY == EVERY - 1 for number in range(len(self.pairs), len(self.pairs) + len(rows))
        ]
        self.pairs += made

    @precondition(lambda self: self.pairs)
    @rule(writer=WRITERS, number=NUMBERS, choice=st.sampled_from(CHOICES), person=PEOPLE)
    def choose(self, writer, number, choice, person):
        pair = self.pairs[number % len(self.pairs)]
        before = self.standing.setdefault((pair.id, person), choice)
        if before == choice:
            assert self.stores[writer].choose(pair.id, choice, person).choice == choice
        else:
            with pytest.raises(ChosenBefore):
                self.stores[writer].choose(pair.id, choice, person)

    @rule(writer=WRITERS, number=st.integers(0, 5), choice=st.sampled_from("ab"), person=PEOPLE)
    def vote_in_chat(self, writer, number, choice, person):
        pair = Pair(f"vote {number}", "How?", "How?", "So.", "No.", ("base", "ppo"), chat={"run": "example"})
        before = self.standing.get((pair.id, person), choice)
        if before == choice:
            self.stores[writer].vote([(pair, choice)], person)
            self.pairs += [pair] * (pair not in self.pairs)
            self.standing.setdefault((pair.id, person), choice)

    @rule(writer=WRITERS, person=PEOPLE)
    def take_back(self, writer, person):
        mine = [pair_id for pair_id, judge in self.standing if judge == person]
        back = self.stores[writer].undo(person)
        assert (back and back.id) == (mine[-1] if mine else None)
        self.standing.pop((back and back.id, person), None)

    @rule(writer=WRITERS, person=PEOPLE)
    def delete_ones_own(self, writer, person):
        mine = [key for key in self.standing if key[1] == person]
        assert self.stores[writer].forget(person) == len(mine)
        for key in mine:
            del self.standing[key]
        judged = {pair_id for pair_id, _ in self.standing}
        self.pairs = [pair for pair in self.pairs if not pair.chat or pair.id in judged]
        assert f'"{person}"' not in (self.path / "choices.jsonl").read_text() if mine else True

    @rule(writer=WRITERS, rows=ROWS)
    def bring_in(self, writer, rows):
        store = self.stores[writer]
        known = {(pair.question, pair.a, pair.b) for pair in self.pairs if pair.models[0] == IMPORTED}
        new = {(prompt.strip(), a, b): None for prompt, a, b in rows}.keys() - known
        lines = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), row, strict=True))) for row in rows]
        assert store.take_in("\n".join(lines)) == len(new)
        imported = list(store.pairs.values())[len(self.pairs) :]
        assert {(pair.question, pair.a, pair.b) for pair in imported} == new
        self.pairs += imported
        self.standing |= {(pair.id, IMPORTED): "a" for pair in imported}

    @precondition(lambda self: self.pairs)
    @rule(number=NUMBERS, cut=NUMBERS, name=st.sampled_from(["pairs.jsonl", "choices.jsonl"]))
    def die_while_writing(self, number, cut, name):
        """A process that is killed has written a part of a line, which it did not acknowledge."""
        lines = (self.path / "pairs.jsonl").read_bytes().splitlines()
        if name == "choices.jsonl":
            pair = self.pairs[number % len(self.pairs)]
            lines = [json.dumps({"id": pair.id, "person": "zoë", "choice": "a", "time": 1.0}).encode()]
        line = lines[number % len(lines)]
        with (self.path / name).open("ab") as file:
            file.write(line[: cut % len(line)])

    @rule(name=st.sampled_from(["pairs.jsonl", "choices.jsonl"]), line=st.sampled_from(BY_HAND))
    def write_by_hand(self, name, line):
        with (self.path / name).open("ab") as file:
            file.write(line + b"\n")

    @rule(writer=WRITERS)
    def restart(self, writer):
        self.stores[writer] = Store(self.path)

    @precondition(lambda self: self.pairs)
    @rule(person=PEOPLE, count=st.integers(1, 4))
    def ask(self, person, count):
        asked = self.stores[0].next(person, count, {"base", "ppo"})
        assert len({pair.id for pair in asked}) == len(asked) <= count
        assert not any((pair.id, person) in self.standing or pair.chat for pair in asked)
        assert self.stores[0].next(person, count) == []  # nothing was asked of the base alone

    @rule()
    def copy(self):
        with tempfile.TemporaryDirectory() as folder:
            self.stores[0].copy_to(Path(folder, "copy"))
            assert Store(Path(folder, "copy")).preferences() == self.stores[0].preferences()

    @rule()
    def look(self):
        self.stands_in(self.stores[0])

    @invariant()
    def what_was_acknowledged_stands(self):
        self.stands_in(Store(self.path))

    def stands_in(self, store):
        found = {(choice.id, choice.person): choice.choice for choice in store.choices()}
        assert found == self.standing and list(found) == list(self.standing)
        assert list(store.pairs.values()) == self.pairs
        # What is counted as choices come and go is what a count of all that stand finds.
        for chat in (True, False):
            counted = Counter(
                (store.pairs[choice.id].models, choice.person, choice.choice) for choice in store.choices(chat)
            )
            assert store.tally(chat) == counted
        assert {choice for _, choice in store.votes()} == {*store.choices()} - {*store.choices(chat=False)}
        for person in ("ann", "bob", "eve", IMPORTED, "nobody"):
            own = [choice.id for choice in store.choices(chat=False) if choice.person == person]
            assert store.last_of(person) == (own[-1] if own else None)
        units = [
            sorted(one for (key, _), one in found.items() if key == pair and one != "skip") for pair in store.pairs
        ]
        assert store.judgements() == Counter(tuple(unit) for unit in units if unit)


@pytest.mark.process
def test_what_was_acknowledged_stands_whatever_the_order_of_events(long, tries):
    counts = {"max_examples": 200, "stateful_step_count": 50} if long else {"max_examples": 12}
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    Events.TestCase.settings = settings(**counts, deadline=None, derandomize=not long, suppress_health_check=checks)
    Events.TestCase().runTest()
    tries(counts["max_examples"])


@pytest.mark.parametrize("times", [1, 2, 3, 4, 8])
def test_what_others_delete_is_seen_however_often_they_do(tmp_path, times):
    """A file that is written anew twice may have its old inode again."""
    store = Store.open(tmp_path / "store", "everyday", "0123")
    pairs = store.add((f"How {n}?", f"How {n}?", f"So {n}.", f"No {n}.", ("base", "base")) for n in range(8))
    for number, pair in enumerate(pairs):
        store.choose(pair.id, "a", f"p{number}")
    other = Store(store.path)
    for number in range(times):
        store.forget(f"p{number}")
    for _ in range(2):
        assert other.choices() == store.choices() and len(other.choices()) == 8 - times


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=8, max_size=8), picked=st.lists(st.sampled_from("ab")))
def test_what_is_exported_is_what_training_reads(rows, picked):
    """Whatever was asked and answered: a file of preferences holds what was chosen, in order."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder, "store"), "everyday", "0123")
        differing = ((f"{n} {p}", p, f"a {a}", f"b {b}", ("base", "base")) for n, (p, a, b) in enumerate(rows))
        for pair, choice in zip(store.add(differing), [*picked, *"abababab"], strict=False):
            store.choose(pair.id, choice, "ann")
        file = Path(folder, "out.jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in store.preferences()), encoding="utf-8")
        parts = load_preferences(str(file))
        assert sorted(map(str, (row for part in parts for row in part))) == sorted(map(str, store.preferences()))


def write(path, name, count):
    store = Store(path)
    for pair in list(store.pairs.values())[:count]:
        store.choose(pair.id, "a", name)


@pytest.mark.process
def test_processes_that_write_at_once_lose_nothing(tmp_path, long, tries):
    store = Store.open(tmp_path / "store", "everyday", "0123")
    count = 1000 if long else 50
    store.add((f"How {n}?", f"How {n}?", f"So {n}.", f"No {n}.", ("base", "base")) for n in range(count))
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write, args=(store.path, f"p{n}", count)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = [json.loads(line) for line in (store.path / "choices.jsonl").read_text().splitlines()]
    assert len(lines) == len({(line["id"], line["person"]) for line in lines}) == 8 * count == len(store.choices())
    tries(len(lines))
