"""A model that learns while people choose: what they come to prefer, and what a stop, a kill or a step back leaves."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import pytest
from processes import ROOT, keep_signals

from rlhf.commands import live
from rlhf.config import BadInput, LiveArguments
from rlhf.feedback import Store
from rlhf.feedback.live import (
    BACK,
    STATE,
    State,
    answering,
    folder_of,
    go_back,
    in_words,
    preferred,
    present,
    session,
    states,
)
from rlhf.feedback.store import BY_BASE
from rlhf.runs.directory import Run
from rlhf.runs.files import write_json


SMALL = {
    "choices_per_state": 30, "updates_per_state": 8, "seconds_per_state": 300, "feedback_prompts": 16,
    "per_device_train_batch_size": 32, "learning_rate": 1.5e-3, "kl_coef": 0.02, "response_length": 40,
}  # fmt: skip


def shorter(pair):
    a, b = (len(answer.split()) for answer in (pair.a, pair.b))
    return "a" if a < b else "b" if b < a else "tie"


def until(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


class Person:
    """Somebody with a taste, as before the page."""

    def __init__(self, folder):
        self.store = until(lambda: (folder / "store.json").exists() and Store(folder))

    def choose(self, count, taste=shorter):
        """The pairs that somebody with this taste has judged, one after another."""
        judged = []
        for _ in range(count):
            (pair,) = until(lambda: self.store.next("ann", 1, answering(self.store)))
            self.store.choose(pair.id, taste(pair), "ann")
            judged.append(pair)
        return judged


@pytest.fixture
def session_with(tmp_path, one_thread):
    """Have a live session in this process, in the folder `run`, until `people(person, run)` has returned."""

    def have(people, **settings):
        run, failures = Run(tmp_path / "run"), []

        def come():
            try:
                people(Person(tmp_path / "store"), run)
            except BaseException as error:
                failures.append(error)
            finally:
                if run.path.exists():
                    run.request_stop()

        args = LiveArguments(**{**SMALL, "store": str(tmp_path / "store"), "output_dir": str(run.path), **settings})
        person = threading.Thread(target=come)
        person.start()
        try:
            with keep_signals():
                live(args)
        finally:
            person.join()
        assert failures == []
        return run

    return have


@pytest.mark.process
def test_people_soon_prefer_the_new_answers_and_nothing_is_lost_by_a_step_back_or_an_interruption(
    session_with, tmp_path
):
    """People who like short answers."""
    chosen = []

    def at_first(person, run):
        assert answering(person.store) == BY_BASE
        chosen.extend(person.choose(30))
        until(lambda: present(run).number == 1)
        chosen.extend(person.choose(30))
        assert all(set(pair.models) == {"base", "run, state 1"} for pair in chosen[-29:])
        go_back(run, 0)
        until(lambda: answering(person.store) == BY_BASE)
        chosen.extend(person.choose(1))
        assert set(chosen[-1].models) == BY_BASE
        until(lambda: run.status()["message"].startswith("1 of 30"))  # the choices since state 0 are left aside
        chosen.extend(person.choose(29))
        until(lambda: run.status()["message"].startswith("Learning"))
        until(lambda: Run(run.path / "reward").status()["state"] == "running")
        run.request_stop()
        os.kill(os.getpid(), signal.SIGINT)  # a second wish to stop ends it at once

    with pytest.raises(KeyboardInterrupt):
        session_with(at_first)
    run, store = Run(tmp_path / "run"), Store(tmp_path / "store")
    share, n = preferred(store, run)
    assert n >= 29 and share.low > 0.5
    assert run.status()["state"] == "interrupted"
    assert [state.number for state in states(run)] == [0, 1] and present(run).number == 0
    assert [choice.id for choice in store.choices()] == [pair.id for pair in chosen] and session(store).id == run.id
    assert len([choice for choice in store.choices() if present(run).counts(choice)]) == 30

    def later(person, run):
        go_back(run, 1)
        until(lambda: answering(person.store) == {"base", "run, state 1"})
        until(lambda: run.model("policy"))

    session_with(later, resume_from_checkpoint=True)
    assert run.status()["state"] == "stopped" and present(run).number == 1
    assert [row["step"] for row in Run(run.path / "ppo").metrics()] == list(range(1, 9))


def test_what_is_no_state_is_passed_over(tmp_path):
    run = Run.create(tmp_path / "run", "live", {})
    made = State(1, 0, 5.0, 4.0, ((0.0, 1.0), (2.0, 3.0)), 30)
    for number, content in enumerate((asdict(made), {"number": "x"}, {"aside": 3}, [], "no state"), start=1):
        folder_of(run, number).mkdir(parents=True)
        write_json(folder_of(run, number) / STATE, content)
    assert states(run) == [State(aside=((0.0, 0.0),)), made] and present(run) == made
    for content in (
        {"state": 0},
        {"state": 0, "time": "late"},
        {"state": 0, "time": None},
        {"state": [], "time": 9.0},
    ):
        write_json(run.path / BACK, content)
        assert present(run) == made
    go_back(run, 0)
    assert present(run).number == 0


@pytest.mark.process
def test_ties_alone_teach_nothing_and_a_second_session_may_not_join(session_with, tmp_path):
    def people(person, run):
        person.choose(6, lambda pair: "tie")
        until(lambda: run.status()["message"].startswith("6 of 5 new choices: at least 5 must prefer an answer"))
        run.set_status(pid=os.getpid())
        with pytest.raises(BadInput, match="run learns from these choices already; stop that first"):
            live(LiveArguments(store=str(tmp_path / "store"), output_dir=str(tmp_path / "other")))
        with pytest.raises(BadInput, match="no state 1 to go back to; there are 0"):
            go_back(run, 1)

    run = session_with(people, choices_per_state=5)
    assert [state.number for state in states(run)] == [0] and not (tmp_path / "other").exists()
    assert in_words(Store(tmp_path / "store"), run) == ""


def test_a_mistake_is_one_sentence_and_makes_no_run(command, tmp_path):
    Store.open(tmp_path / "store", "everyday", "0123")
    for words, message in (((), "Give --store"), (("--store", "store"), "holds choices between answers of everyday")):
        done = command("live", *words, "--output_dir", "run")
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("error: ") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_after_a_hundred_choices_people_prefer_the_new_answers_though_the_run_was_killed(tmp_path):
    """By the command, killed in the middle of an update and resumed."""
    words = [sys.executable, "-m", "rlhf", "live", "--store", "store", "--output_dir", "run"]
    words += ["--updates_per_state", "10", "--seconds_per_state", "600"]  # on a busy machine too
    start = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    run, process = Run(tmp_path / "run"), subprocess.Popen(words, **start)
    person = Person(tmp_path / "store")
    for number in range(1, 11):
        person.choose(10)
        if number == 5:
            until(lambda: Run(run.path / "ppo").status()["step"] > present(run).updates + 1)
            process.kill()
            process.wait()
            process = subprocess.Popen([*words, "--resume_from_checkpoint", "true"], **start)
        until(lambda number=number: present(run).number == number)
    process.terminate()
    assert process.wait() == 0
    share, n = preferred(person.store, run)
    print(in_words(person.store, run))
    assert n >= 80 and share.low > 0.6
    steps = [row["step"] for row in Run(run.path / "ppo").metrics()]
    assert steps == list(range(1, present(run).updates + 1))
