"""Runs that are started, stopped, killed, resumed, renamed and deleted in any order, also over a restart.

What happens to the queue is compared with a few lines that say what should. A run's process here only sleeps; what it
would write is written for it.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from rlhf.config import BadInput, RewardArguments
from rlhf.launch import jobs
from rlhf.runs import directory
from rlhf.runs.directory import ACTIVE, Run, find_run, list_runs
from rlhf.runs.history import rows_of
from rlhf.ui import run_choices


PLACE = st.integers(0, 7)
"""Which of the runs, as far as there are so many."""


class Queue(RuleBasedStateMachine):
    """The page's queue beside a model of it: who waits, who has the machine, and what each has logged."""

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.folder = tempfile.TemporaryDirectory()
        self.now = 1.8e9
        clock = SimpleNamespace(**{name: getattr(time, name) for name in ("strftime", "localtime", "sleep")})
        clock.time = lambda: self.now
        self.patch.setenv("RLHF_RUNS", self.folder.name)
        for module in (jobs, directory):
            self.patch.setattr(module, "time", clock)
        self.patch.setattr(jobs, "prepare", lambda: None)
        self.patch.setattr(jobs, "_take_worker", self.sleeper)
        # Who waits for a process is called here once it has ended, so that the order of events is that of the rules.
        self.patch.setattr(jobs, "threading", SimpleNamespace(Thread=self.thread))
        self.workers: list[subprocess.Popen] = []
        self.ending: list[subprocess.Popen] = []
        """Processes whose run has ended, and which have not yet."""
        self.reapers: dict[subprocess.Popen, Callable] = {}
        self.seed = self.steps = 0
        self.waiting: list[str] = []
        self.active: str | None = None
        self.alive = False
        """Whether the process of the active run has not ended."""
        self.ended: list[str] = []
        self.logs: dict[str, list[int]] = {}
        self.names: dict[str, str] = {}

    def sleeper(self):
        worker = subprocess.Popen(["sleep", "1000"], stdin=subprocess.PIPE, start_new_session=True)
        self.workers.append(worker)
        return worker

    def thread(self, target, args, daemon):
        if target is jobs._reap:
            self.reapers[args[0]] = lambda: target(*args)
        return SimpleNamespace(start=lambda: None)

    def teardown(self):
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.patch.undo()
        self.folder.cleanup()

    # The model

    def next(self):
        """Whoever looks for the run that has the machine finds out that its process is gone, and begins the next."""
        if self.active and not self.alive:
            self.end()
        if not self.active and self.waiting:
            self.active, self.alive = self.waiting.pop(0), True

    def end(self):
        self.ended.append(self.active)
        self.active, self.alive = None, False

    def one_of(self, names, place):
        in_order = [name for name in self.logs if name in names]  # that in which they were started, as ids are random
        return Run(Path(self.folder.name).resolve() / in_order[place % len(in_order)])

    def running(self):
        return Run(Path(self.folder.name).resolve() / self.active)

    def exit(self, worker):
        """A process is gone; who waits for it, if the page was not restarted, is told."""
        worker.kill()
        worker.wait()
        if reap := self.reapers.pop(worker, None):
            reap()
            self.next()

    # What happens

    @rule()
    def start(self):
        self.now += 3
        self.seed += 1
        run = jobs.launch("reward", RewardArguments(seed=self.seed))
        self.waiting.append(run.id)
        self.logs[run.id], self.names[run.id] = [], ""
        self.next()

    @precondition(lambda self: self.alive)
    @rule(steps=st.integers(1, 3), kept=st.integers(0, 3))
    def work(self, steps, kept):
        self.now += 3
        run, log = self.running(), self.logs[self.active]
        if run.status()["state"] == "queued":  # it may go on from a checkpoint, which knows how long the log was
            sizes = [len(line) for line in (run.path / "metrics.jsonl").read_bytes().splitlines(True)] if log else []
            run._cut({"metrics.jsonl": sum(sizes[:kept])})
            del log[kept:]
            run.set_status(state="running", started=self.now)
        for _ in range(steps):
            self.steps += 1
            log.append(self.steps)
            run.log({"step": self.steps})

    @precondition(lambda self: self.alive)
    @rule(state=st.sampled_from(["finished", "stopped", "failed", "diverged"]))
    def finish(self, state):
        self.now += 3
        self.running().finish(state, "Done.")
        self.ending.append(self.workers[-1])
        self.end()

    @precondition(lambda self: self.ending)
    @rule(place=PLACE)
    def exit_at_last(self, place):
        self.now += 3
        self.exit(self.ending.pop(place % len(self.ending)))

    @precondition(lambda self: self.alive)
    @rule()
    def kill(self):
        self.now += 3
        self.alive = False
        self.exit(self.workers[-1])

    @precondition(lambda self: self.waiting or self.active)
    @rule(place=PLACE)
    def stop(self, place):
        self.now += 3
        run = self.one_of([*self.waiting, *filter(None, [self.active])], place)
        begun = run.status()["state"] != "queued"
        jobs.stop(run)
        if run.id in self.waiting:
            self.waiting.remove(run.id)
            self.ended.append(run.id)
        elif not begun and self.alive:
            assert run.status()["state"] == "stopped"
            self.end()
            self.exit(self.workers[-1])
        else:
            assert run.status()["state"] == "stopping"

    @precondition(lambda self: self.ended)
    @rule(place=PLACE)
    def resume(self, place):
        self.now += 3
        run = self.one_of(self.ended, place)
        if run.status()["state"] not in jobs.RESUMABLE:
            with pytest.raises(BadInput):
                jobs.resume(run)
            return
        jobs.resume(run)
        self.ended.remove(run.id)
        self.waiting.append(run.id)
        self.next()

    @rule()
    def advance(self):
        self.now += 3
        jobs.advance()
        self.next()

    @rule()
    def restart(self):
        """The page is ended and started again; processes go on, and nobody waits for them any more."""
        self.now += 60
        self.reapers = {}
        directory._unwritten.clear()
        directory.clear_deleted()
        jobs.advance()
        self.next()

    @precondition(lambda self: self.logs)
    @rule(place=PLACE, name=st.text(max_size=20))
    def rename(self, place, name):
        run = self.one_of(self.logs, place)
        jobs.annotate(run, name, name)
        self.names[run.id] = directory._printable(name)

    @precondition(lambda self: self.logs)
    @rule(place=PLACE)
    def delete(self, place):
        run = self.one_of(self.logs, place)
        if run.id not in self.ended:
            with pytest.raises(BadInput):
                jobs.delete(run)
            return
        jobs.delete(run)
        self.ended.remove(run.id)
        del self.logs[run.id], self.names[run.id]

    # What always holds

    @invariant()
    def nobodys_run_vanishes_and_what_was_written_is_read(self):
        assert {run.id for run in list_runs()} == {name for _, name in run_choices()} - {"example", "example-smollm2"}
        assert {run.id for run in list_runs()} == set(self.logs)
        for name, log in self.logs.items():
            run = find_run(name)
            assert [row["step"] for row in rows_of(run)] == [row["step"] for row in run.metrics()] == log
            assert run.about().get("name", "") == self.names[name]
            assert run.config()["kind"] == "reward" and run.status()["created"] <= self.now

    @invariant()
    def one_has_the_machine_and_the_others_wait_in_their_order(self):
        assert [run.id for run in jobs.waiting()] == self.waiting
        states = {run.id: run.status()["state"] for run in list_runs()}
        at_it = [name for name, state in states.items() if state in ACTIVE and state != "waiting"]
        assert at_it == [self.active] * bool(self.active)
        assert [worker.poll() for worker in self.workers].count(None) == int(self.alive) + len(self.ending)
        assert all(states[name] not in ACTIVE for name in self.ended)


def test_a_run_is_gone_on_with_while_its_first_process_is_still_ending():
    queue = Queue()
    for event in (queue.start, queue.start, lambda: queue.finish("stopped"), lambda: queue.resume(0)):
        event()
    for _ in range(2):
        queue.one_has_the_machine_and_the_others_wait_in_their_order()
        queue.finish("stopped")
        queue.advance()
        queue.exit_at_last(0)
    queue.one_has_the_machine_and_the_others_wait_in_their_order()
    assert find_run(queue.ended[-1]).status()["message"] == "Done."
    queue.teardown()


def test_runs_in_any_order_of_events(long, tries):
    count = 400 if long else 12
    tries(count)
    run_state_machine_as_test(
        Queue,
        settings=settings(
            max_examples=count,
            stateful_step_count=30,
            deadline=None,
            derandomize=not long,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
