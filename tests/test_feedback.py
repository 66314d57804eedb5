"""People's choices: kept whatever happens, given to whom they belong, and brought in and out whole."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
import torch
from processes import ROOT

from rlhf.config import BadInput, BenchArguments, FeedbackArguments, RewardArguments
from rlhf.data.load import pairs_of
from rlhf.everyday import grade
from rlhf.feedback import Store, ask
from rlhf.feedback.agreement import agreement
from rlhf.feedback.ask import Asker, best_pairs
from rlhf.feedback.pairs import PLAIN, joined, judged_by_probe, load_choices, pairs_to_learn
from rlhf.feedback.probe import (
    ASKING,
    JUDGING,
    Features,
    Probe,
    answer_features,
    answer_states,
    comparable,
    standardised,
    told_by_others,
)
from rlhf.feedback.store import EVERY


@pytest.fixture
def store(tmp_path):
    """A store with 40 pairs."""
    store = Store.open(tmp_path / "store", "everyday", "0123")
    store.add((f"How {n}?\n", f"How {n}?", f"So {n}.", f"No {n}.", ("base", "base")) for n in range(40))
    return store


# On disk before it is acknowledged -----------------------------------------------------------------------------------

WRITER = """
import sys
from rlhf.feedback import Store
store, person = Store(sys.argv[1]), sys.argv[2]
for pair in list(store.pairs.values()):
    print(store.choose(pair.id, "a" if hash(pair.id) % 2 else "b", person).id, flush=True)
"""


@pytest.mark.process
def test_no_choice_that_was_acknowledged_is_lost_when_its_process_is_killed(store):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, store.path, name], env=environment, stdout=subprocess.PIPE)
        for name in ("ann", "bob", "eve")
    ]
    acknowledged = {}
    for name, writer, last in zip(("ann", "bob", "eve"), writers, (5, 17, 40), strict=True):
        acknowledged[name] = [writer.stdout.readline().decode().strip() for _ in range(last)]
        writer.send_signal(signal.SIGKILL)
        acknowledged[name] += writer.stdout.read().decode().split()
        writer.wait()
    standing = {(choice.id, choice.person) for choice in Store(store.path).choices()}
    assert {(pair_id, name) for name, ids in acknowledged.items() for pair_id in ids} <= standing
    lines = (store.path / "choices.jsonl").read_text().splitlines()
    assert len(lines) == len(standing)  # none twice


def test_a_line_cut_off_by_a_kill_does_not_count_and_hides_no_other(store):
    pairs = list(store.pairs)
    store.choose(pairs[0], "a", "ann")
    with (store.path / "choices.jsonl").open("a") as file:
        file.write('{"id": "' + pairs[1])
    store.choose(pairs[2], "b", "ann")
    assert [choice.id for choice in Store(store.path).choices()] == [pairs[0], pairs[2]]


def test_what_another_process_writes_is_seen_and_so_is_what_it_deletes(store):
    other, pairs = Store(store.path), list(store.pairs)
    for number in range(5):
        other.choose(pairs[number], "a", "ann" if number % 2 else "bob")
    assert len(store.choices()) == 5
    other.forget("ann")
    for number in range(5, 12):
        other.choose(pairs[number], "a", "bob")
    assert {choice.person for choice in store.choices()} == {"bob"} and len(store.choices()) == 10
    assert "ann" not in (store.path / "choices.jsonl").read_text()


def test_thirty_people_at_once_lose_nothing_and_share_no_pair_but_those_for_all(tmp_path):
    store = Store.open(tmp_path / "store", "everyday", "0123")
    store.add((f"How {n}?", f"How {n}?", f"So {n}.", f"No {n}.", ("base", "base")) for n in range(600))
    waits = []

    def person(name):
        for _ in range(16):
            (pair,) = store.next(name)
            began = time.monotonic()
            store.choose(pair.id, random.choice("ab"), name)
            waits.append(time.monotonic() - began)

    people = [threading.Thread(target=person, args=(f"p{n}",)) for n in range(30)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    choices = Store(store.path).choices()
    assert len(choices) == len({(choice.id, choice.person) for choice in choices}) == 30 * 16
    judges = Counter(choice.id for choice in choices)
    several = {pair_id for pair_id, number in judges.items() if number > 1}
    assert several == {pair.id for pair in store.pairs.values() if pair.shared and pair.id in judges}
    assert all(judges[pair_id] == 30 for pair_id in several) and len(several) == 16 // EVERY


# A choice counts once ------------------------------------------------------------------------------------------------


def test_a_double_click_is_harmless_and_a_change_of_mind_is_taken_back_first(store):
    (pair,) = store.next("ann")
    assert store.choose(pair.id, "a", "ann") == store.choose(pair.id, "a", "ann")
    assert len(store.choices()) == 1
    with pytest.raises(BadInput, match="ann has chosen 'a' .* before; take that back first"):
        store.choose(pair.id, "b", "ann")
    assert store.undo("ann") == pair and store.undo("ann") is None
    assert store.next("ann") == [pair]
    store.choose(pair.id, "b", "ann")
    assert [choice.choice for choice in Store(store.path).choices()] == ["b"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("gone", "a", "ann"), "no pair 'gone' here"),
        ((None, "c", "ann"), "A choice is one of a, b, tie, skip, not 'c'"),
        ((None, "a", ""), "1 to 64 characters"),
        ((None, "a", "x" * 65), "1 to 64 characters"),
    ],
)
def test_what_is_no_choice_gets_a_sentence_and_leaves_nothing(store, given, message):
    pair_id, choice, person = given
    with pytest.raises(BadInput, match=message):
        store.choose(pair_id or next(iter(store.pairs)), choice, person)
    assert not (store.path / "choices.jsonl").exists()


def test_a_store_belongs_to_one_model(store, tmp_path):
    with pytest.raises(BadInput, match="answers of everyday, with other weights than gpt2 has"):
        Store.open(store.path, "gpt2", "4567")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(BadInput, match="holds other files"):
        Store.open(tmp_path / "other", "everyday", "0123")
    with pytest.raises(BadInput, match="holds no choices"):
        Store(tmp_path / "other")
    (store.path / "store.json").write_text("[]")
    with pytest.raises(BadInput, match="store.json cannot be read"):
        Store.open(store.path, "everyday", "0123")


# What is asked -------------------------------------------------------------------------------------------------------


def test_one_pair_in_eight_goes_to_all_and_nobody_is_asked_twice(store):
    seen = {name: [] for name in ("ann", "bob")}
    for _ in range(17):
        for name, asked in seen.items():
            (pair,) = store.next(name)
            asked.append(pair)
            store.choose(pair.id, "skip", name)
    for asked in seen.values():
        assert [number for number, pair in enumerate(asked) if pair.shared] == [EVERY - 1, 2 * EVERY - 1]
        assert len({pair.id for pair in asked}) == 17
    both = {pair.id for pair in seen["ann"]} & {pair.id for pair in seen["bob"]}
    assert both == {pair.id for pair in store.pairs.values() if pair.shared and pair in seen["ann"]}


def test_when_all_pairs_are_judged_people_judge_them_again_until_each_has_seen_all(store):
    for name in ("ann", "bob"):
        for _ in range(40):
            (pair,) = store.next(name)
            store.choose(pair.id, "tie", name)
        assert store.next(name) == []
    assert store.judgements() == {("tie", "tie"): 40}


def test_the_most_telling_pairs_come_first_once_somebody_knows_which(store):
    store.order = list(reversed(store.pairs))
    asked = [pair.id for pair in store.next("ann", 3)]
    assert asked == [pair_id for pair_id in store.order if not store.pairs[pair_id].shared][:3]
    assert [pair.id for pair in store.next("ann", 3)] == asked  # asked again, the same
    assert not set(asked) & {pair.id for pair in store.next("bob", 3)}


# Agreement -----------------------------------------------------------------------------------------------------------


def test_agreement_is_that_of_a_worked_example():
    """Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, section C: nominal data, four observers."""
    observers = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    found = agreement(Counter("".join(unit).replace(".", "") for unit in zip(*observers, strict=True)))
    assert found.alpha == pytest.approx(0.743, abs=5e-4)


def test_agreement_of_all_of_none_and_of_chance():
    assert agreement({}) is agreement({"a": 1, "b": 1}) is None
    assert agreement({"aa": 2, "bb": 1}).alpha == 1 and agreement({"ab": 2}).raw == 0
    assert agreement({"aa": 2}).alpha is None
    dice = random.Random(0)
    assert abs(agreement(Counter(tuple(dice.choices("ab", k=3)) for _ in range(2000))).alpha) < 0.05


# In and out ----------------------------------------------------------------------------------------------------------


def test_what_goes_out_comes_in_again_once(store, tmp_path):
    pairs = list(store.pairs)
    for number, choice in enumerate(("a", "b", "tie", "skip", "b")):
        store.choose(pairs[number], choice, "ann")
    out = store.preferences()
    assert [row["chosen"] for row in out] == ["So 0.", "No 1.", "No 4."]
    text = "".join(json.dumps(row) + "\n" for row in out)
    other = Store.open(tmp_path / "other", "everyday", "0123")
    assert other.take_in("\N{ZERO WIDTH NO-BREAK SPACE}" + text) == 3 and other.take_in(text) == 0
    assert other.preferences() == out and other.next("ann") == []


GOOD = json.dumps({"prompt": "How?", "chosen": "So.", "rejected": "No."})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ("[1]", "line 2: not an object"),
        ('{"prompt": "How?", "chosen": "So."}', "line 2: prompt, chosen and rejected must be texts"),
        ('{"prompt": "How?", "chosen": "So.", "rejected": 7}', "line 2: .* must be texts"),
        ('{"prompt": " ", "chosen": "So.", "rejected": "No."}', "line 2: .* must be texts"),
        ('{"prompt": "How?", "chosen": "So.", "rejected": "So."}', "line 2: chosen equals rejected"),
        ('{"prompt": "How?", "chosen": "\\ud800", "rejected": "So."}', "line 2: half a character"),
        ('{"prompt": [{"role": "user"}], "chosen": "a", "rejected": "So."}', "line 2: the messages of a conversation"),
        (json.dumps({"prompt": "How?", "chosen": "a" * 30_000, "rejected": "b"}), "line 2: a text of more than"),
        ("\n", None),
    ],
)
def test_an_import_is_taken_whole_or_not_at_all(store, line, message):
    before = sorted(path.name for path in store.path.iterdir())
    if message is None:
        assert store.take_in(f"{GOOD}\n{line}\n") == 1
        return
    with pytest.raises(BadInput, match=f"Nothing was imported .{message}"):
        store.take_in(f"{GOOD}\n{line}\n{GOOD.replace('So', 'Yes')}")
    assert store.preferences() == [] and sorted(path.name for path in store.path.iterdir()) == before


def test_a_store_that_is_full_takes_nothing_in(store, monkeypatch):
    monkeypatch.setattr("rlhf.feedback.store.MOST_PAIRS", 41)
    assert store.take_in(GOOD) == 1 and not store.has_room()
    with pytest.raises(BadInput, match="41 pairs are the most, and there are 41"):
        store.take_in(GOOD.replace("How", "Why"))
    assert len(Store(store.path).pairs) == 41 and store.take_in(GOOD) == 0


# By script ----------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_script_is_the_person(command, tmp_path, monkeypatch):
    small = ("--store", "mine", "--person", "ann", "--response_length", 24)
    done = command("feedback", "next", *small, "--n", 12)
    assert done.returncode == 0, done.stderr[-2000:]
    asked = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({row["id"] for row in asked}) == len({row["prompt"] for row in asked}) == 12
    assert all(row["a"] and row["b"] and row["a"] != row["b"] for row in asked)
    again = command("feedback", "next", *small, "--n", 12)
    assert again.stdout == done.stdout
    lines = [json.dumps({"id": row["id"], "choice": "a" if len(row["a"]) < len(row["b"]) else "b"}) for row in asked]
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("\n".join([*lines[:6], '{"id": "gone", "choice": "a"}', "{", *lines[6:]]))
    )
    done = command("feedback", "choose", *small)
    assert done.returncode == 2 and "12 choices were recorded, 2 were not: line 7: There is no pair" in done.stderr
    exported = command("feedback", "export", "--store", "mine").stdout
    rows = [json.loads(line) for line in exported.splitlines()]
    assert len(rows) == 12 and all(len(row["chosen"]) < len(row["rejected"]) for row in rows)
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(line.replace('"a"', '"tie"') + "\n" for line in lines)))
    assert command("feedback", "choose", "--store", "mine", "--person", "bob").returncode == 0
    assert "12 pairs: two people agree in" in command("feedback", "agreement", "--store", "mine").stdout
    assert command("feedback", "forget", "--store", "mine", "--person", "bob").stdout.startswith("12 choices of bob")
    assert command("feedback", "export", "--store", "mine").stdout == exported


# Learned from -------------------------------------------------------------------------------------------------------


@pytest.fixture
def judged(tmp_path, few_pairs):
    """A store with 60 of the embedded pairs, judged by two people who agree in two thirds of them."""
    store = Store.open(tmp_path / "judged", "everyday", "0123")
    rows = [json.loads(line) for line in few_pairs.read_text().splitlines()[:60]]
    store.add((row["prompt"], row["prompt"].strip(), row["chosen"], row["rejected"], ("base", "base")) for row in rows)
    for number, pair_id in enumerate(store.pairs):
        store.choose(pair_id, "a", "ann")
        store.choose(pair_id, "b" if number % 3 == 0 else "a", "bob")
    return store


@pytest.mark.process
def test_a_reward_model_learns_from_choices_alone_or_beside_other_pairs(judged, few_pairs, command, tmp_path):
    words = ("reward", "--feedback", judged.path, "--max_steps", 1, "--dataset_name", few_pairs)
    words += ("--feedback_prompts", 0)
    for more, name in ((("--feedback_only", "true"), "alone"), ((), "beside")):
        done = command(*words, *more, "--output_dir", name)
        assert done.returncode == 0, done.stderr[-2000:]
        measured = json.loads((tmp_path / name / "summary.json").read_text())["reward_model"]
        questions = {pair.question for pair in judged.pairs.values()}
        assert measured["n"] == 2 * 12 and {pair["prompt"] for pair in measured["worst"]} <= questions
        assert measured["agreement"]["raw"] == pytest.approx(2 / 3) and measured["agreement"]["pairs"] == 60
        first = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        assert first["agreement"] == pytest.approx(2 / 3)
    alone, beside = ((tmp_path / name / "model" / "README.md").read_text() for name in ("alone", "beside"))
    assert "Two people choose alike in 67 %" in alone and "people's choices between two answers" in alone
    assert "simulated" not in alone and few_pairs.name not in alone and few_pairs.name in beside


def test_choices_are_never_learned_from_and_held_out_at_once(judged, store):
    choices = load_choices(judged.path)
    assert len(choices.train) + len(choices.held_out) == 120 and choices.ties is None
    assert not set(choices.train["prompt"]) & set(choices.held_out["prompt"])
    assert 0.15 < len(choices.held_out) / 120 < 0.3
    for number, pair_id in enumerate(store.pairs):
        store.choose(pair_id, "a", "ann")
        store.choose(pair_id, "tie" if number % 2 else "b", "bob")
    choices = load_choices(store.path)
    assert len(choices.ties) == 16 and not set(choices.ties["prompt"]) & set(choices.held_out["prompt"])
    talk = [{"role": "user", "content": "How?"}]
    talks = pairs_of([{"prompt": talk, "chosen": "Yes.", "rejected": "No."}], "talks")
    with pytest.raises(BadInput, match="text beside a conversation.; name the data"):
        joined(talks, choices.train)


def test_a_copy_for_a_run_holds_the_choices_and_no_names(judged, tmp_path):
    before = judged.preferences()
    judged.add([("How?", "How?", "So.", "No.", ("base", "base"))])  # which nobody has judged
    judged.copy_to(tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    assert copy.preferences() == before and len(copy.pairs) == 60
    assert agreement(copy.judgements()) == agreement(judged.judgements())
    assert {choice.person for choice in copy.choices()} == {"person 1", "person 2"}


@pytest.mark.parametrize("choices", [3 * ["a"], 30 * ["tie"], []])
def test_too_few_choices_are_refused_before_a_run_is_made(store, command, tmp_path, choices):
    for pair_id, choice in zip(store.pairs, choices, strict=False):
        store.choose(pair_id, choice, "ann")
    done = command("reward", "--feedback", store.path, "--output_dir", "run")
    count = choices.count("a")
    assert done.returncode == 2 and f"holds {count} choices that prefer an answer" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.process
def test_the_benchmark_counts_what_a_person_prefers_and_how_often_a_reward_model_agrees(monkeypatch, tmp_path):
    from rlhf.bench import feedback as bench

    monkeypatch.setattr(bench, "COUNTS", (6, 12))
    monkeypatch.setattr(bench, "TESTED", 12)
    monkeypatch.setattr(bench, "TASTES", {"short": bench.TASTES["short answers"]})
    monkeypatch.setattr(bench, "LEARNERS", {"alone": 0})
    args = BenchArguments(rounds=1, json=str(tmp_path / "found.json"))
    found = bench.bench_feedback(args)
    accuracies = found["accuracy"]["short"]["alone"]
    assert [len(people) for people in accuracies] == [1, 1] and all(0 <= share <= 1 for [share] in accuracies)
    assert all(0 < few <= count for [few], count in zip(found["preferences"]["short"], (6, 12), strict=True))
    kept = json.loads((tmp_path / "found.json").read_text())
    assert kept["counts"] == [6, 12] and kept["seeds"] == [0]
    monkeypatch.setattr(bench, "_accuracy", None)  # whoever is in the file is not asked again
    assert bench.bench_feedback(args) == kept


# What choices say of other answers -----------------------------------------------------------------------------------


def test_a_probe_finds_a_taste_that_few_choices_tell_and_knows_where_it_is_in_doubt():
    torch.manual_seed(0)
    taste = torch.zeros(50)
    taste[7] = 1
    answers = torch.randn(400, 50)
    answers[:, 7] = torch.rand(400).lt(0.1)  # what is liked is in one answer of ten
    answers = standardised(answers)
    differences, worth = answers[:200] - answers[200:], answers[:, 7]
    preferred = 0.5 + 0.5 * (worth[:200] - worth[200:]).sign()
    assert (preferred != 0.5).sum() < 50
    probe = Probe.fit(differences[:150], preferred[:150], ASKING)
    other = [row for row in range(150, 200) if preferred[row] != 0.5]
    assert len(other) > 5 and all(((differences[other] @ probe.weights) > 0) == (preferred[other] == 1))
    unseen = torch.zeros(1, 50)
    unseen[0, 3] = differences.norm(dim=1).mean() * 10
    assert probe.doubt(unseen) > 3 * probe.doubt(differences[:150]).max()


def test_a_probe_that_judges_does_not_learn_peoples_errors_by_heart():
    right = {ASKING: [], JUDGING: []}
    for seed in range(4):
        torch.manual_seed(seed)
        spread = torch.logspace(0, -2, 100)  # as of a model's states: a few directions vary most
        answers = standardised(torch.randn(1200, 100) * spread @ torch.randn(100, 100))
        differences = answers[:600] - answers[600:]
        preferred = (differences @ torch.linalg.svd(differences).Vh[0] > 0).float()
        chosen = torch.where(torch.rand(80) < 0.1, 1 - preferred[:80], preferred[:80])
        for prior, shares in right.items():
            margins = differences[80:] @ Probe.fit(differences[:80], chosen, prior).weights
            shares.append(((margins > 0) == (preferred[80:] == 1)).float().mean().item())
    assert sum(right[JUDGING]) / 4 > 0.85 and sum(right[JUDGING]) > sum(right[ASKING]) + 4 * 0.03


@pytest.mark.parametrize("errors, at_least", [(2, 9), (4, 4)])
def test_a_taste_for_one_word_is_told_from_the_words_that_happened_to_stand_beside_it(errors, at_least):
    torch.manual_seed(0)
    words = [set(torch.rand(80).lt(0.12).nonzero()[:, 0].tolist()) for _ in range(320)]  # 80 words, ten in an answer
    answers = Features(torch.randn(320, 40), [each | {100 + number} for number, each in enumerate(words)])
    first, second, others = comparable(
        *(
            Features(answers.states[part], answers.words[part])
            for part in (slice(100), slice(100, 200), slice(200, None))
        )
    )
    assert first.shape == (100, 40 + 80)  # a word that only one answer has says nothing of another
    likes = torch.tensor([float(7 in each) for each in words])
    preferred = 0.5 + 0.5 * (likes[:100] - likes[100:200])
    assert 10 < (preferred != 0.5).sum() < 30
    wrong = (preferred != 0.5).nonzero()[:errors, 0]
    preferred[wrong] = 1 - preferred[wrong]

    def told_apart(weights):
        margins = (others @ weights)[likes[200:] == 1][:, None] - (others @ weights)[likes[200:] == 0]
        return (margins.mean() / margins.std()).item()

    differences = first - second
    assert told_apart(Probe.fit(differences, preferred, JUDGING).weights) < 3
    assert told_apart(Probe.sparse(differences, preferred, JUDGING)) > at_least
    # The errors are what the other choices contradict
    margins = (2 * preferred - 1) * told_by_others(differences, preferred, JUDGING)
    assert (margins < -PLAIN).nonzero()[:, 0].tolist() == wrong.tolist()


def test_choices_that_contradict_each_other_say_nothing():
    differences, preferred = torch.randn(3, 8).repeat(2, 1), torch.tensor([1.0, 1, 1, 0, 0, 0])
    assert Probe.sparse(differences, preferred, JUDGING).abs().max() < 1e-6


def test_features_are_those_of_the_answer_alone_in_whatever_batch_it_is_read(base):
    model, tokenizer = base
    rows = [
        tokenizer(text)["input_ids"] for text in ("How?\nLike so.", "How do I do that?\nNo.", "Why?\n" + "So. " * 20)
    ]
    starts = [len(tokenizer(text)["input_ids"]) for text in ("How?\n", "How do I do that?\n", "Why?\n")]
    together = answer_states(model, rows, starts)
    assert together.shape == (3, 4 * model.config.hidden_size)
    for row, start, mine in zip(rows, starts, together, strict=True):
        torch.testing.assert_close(answer_states(model, [row], [start])[0], mine, rtol=1e-4, atol=1e-4)
    embedded = model.get_input_embeddings()(torch.tensor(rows[0][starts[0] :]))
    place = model.transformer.wpe(torch.arange(starts[0], len(rows[0])))
    torch.testing.assert_close(
        together[0, -model.config.hidden_size :], (embedded + place).sum(0), rtol=1e-4, atol=1e-4
    )


@pytest.mark.process
def test_once_there_are_choices_people_are_asked_about_what_tells_most(base, tmp_path):
    """One answer of ten is rude; a class that cares about nothing else is asked about it in every other pair."""
    model, tokenizer = base
    store = Store.open(tmp_path / "polite", "everyday", "0123")
    asker = Asker(model, tokenizer, FeedbackArguments(store=str(store.path)))

    def courtesies(pair):
        return [grade(pair.question, answer).courtesy for answer in (pair.a, pair.b)]

    blindly = asker.add(store, 48)
    for pair in blindly:
        a, b = courtesies(pair)
        store.choose(pair.id, "tie" if a == b else "a" if a > b else "b", "ann")
    made = asker.add(store, 32)
    tellingly, the_rest = made[::2], made[1::2]
    assert len(tellingly) == len(the_rest) == 16
    shares = [sum(a != b for a, b in map(courtesies, pairs)) / len(pairs) for pairs in (blindly, the_rest, tellingly)]
    assert max(shares[:2]) < 0.35 and shares[2] > 2 * max(shares[:2])
    assert store.next("bob", 4) == made[:4]


@pytest.mark.process
def test_for_many_people_each_prompt_gives_several_pairs_the_first_of_all_prompts_first(base, tmp_path):
    store = Store.open(tmp_path / "many", "everyday", "0123")
    pairs = Asker(*base, FeedbackArguments(store=str(store.path))).add(store, 16, each=8)
    assert len({pair.question for pair in pairs[:15]}) == 15 and 64 < len(pairs) <= 128
    for question in {pair.question for pair in pairs}:
        answers = [answer for pair in pairs if pair.question == question for answer in (pair.a, pair.b)]
        assert len(set(answers)) > 2 and all(a != b for a, b in zip(answers[::2], answers[1::2], strict=True))
        twos = [frozenset(two) for two in zip(answers[::2], answers[1::2], strict=True)]
        assert len(set(twos)) == len(twos)


def test_of_a_prompts_pairs_the_best_are_taken_and_no_answer_more_than_twice():
    worth = [(0.9, 0, 1), (0.8, 0, 2), (0.7, 0, 3), (0.6, 1, 2), (0.5, 1, 3), (0.4, 2, 3)]
    assert best_pairs(worth, 1) == [(0, 1)]
    assert best_pairs(reversed(worth), 9) == [(0, 1), (0, 2), (1, 2)]


@pytest.mark.process
def test_what_has_been_judged_is_read_once(base, tmp_path, monkeypatch):
    read = []

    def features(model, reader, prompts, answers):
        read.append(len(answers))
        return answer_features(model, reader, prompts, answers)

    monkeypatch.setattr(ask, "answer_features", features)
    store = Store.open(tmp_path / "judged", "everyday", "0123")
    asker = Asker(*base, FeedbackArguments(store=str(store.path)))
    for number, pair in enumerate(asker.add(store, 24)):
        store.choose(pair.id, "ab"[number % 2], "ann")
    judged = 2 * len(store.pairs)
    assert asker.add(store, 1) and asker.add(store, 1)  # nothing of the second batch has been judged
    assert judged < read[0] <= judged + 4 * 8 and read[1] <= 4 * 8


@pytest.mark.process
@pytest.mark.parametrize("wrong", [4, 24])
def test_choices_for_short_answers_are_extended_to_others_and_errors_are_left_out(base, tmp_path, wrong):
    """Half of all choices against the others are no errors any more: all are kept."""
    model, tokenizer = base
    store = Store.open(tmp_path / "short", "everyday", "0123")
    Asker(model, tokenizer, FeedbackArguments(store=str(store.path))).add(store, 48)
    for number, pair in enumerate(store.pairs.values()):
        right = "a" if len(pair.a) < len(pair.b) else "b"
        store.choose(pair.id, right if number % 48 >= wrong else "ab"[right == "a"], "ann")
    args = RewardArguments(feedback=str(store.path), feedback_only=True, feedback_prompts=64)
    told, choices = [], load_choices(store.path)
    pairs, kept = judged_by_probe(choices, model, tokenizer, args, lambda *done: told.append(done))
    assert told == [(done, 64) for done in (0, 16, 32, 48, 64)]

    def errors(rows):
        return sum(
            len(chosen) > len(rejected) for chosen, rejected in zip(rows["chosen"], rows["rejected"], strict=True)
        )

    if wrong == 24:
        assert len(kept) == len(choices.train)
    else:
        assert errors(kept) < errors(choices.train) / 2 and len(kept) > 0.8 * len(choices.train)
        assert 50 < len(pairs) <= 300 and len(set(pairs["prompt"])) > 30
        assert errors(pairs) < 0.25 * len(pairs)
        repeated = pairs_to_learn(choices, args)
        assert len(repeated) == len(pairs) + args.feedback_epochs * len(kept)


def test_mistakes_of_a_script_get_a_sentence(command, tmp_path):
    for words, message in (
        (("next",), "Give --store"),
        (("export", "--store", "nowhere"), "holds no choices"),
        (("next", "--store", "mine", "--model_name_or_path", "no-such-model"), "No model could be loaded"),
    ):
        done = command("feedback", *words)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
