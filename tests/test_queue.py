"""Runs wait for their turn, and their directories are the queue. The worker here is a short process without torch."""

import json
import subprocess
import sys
import threading
import time

import pytest

from rlhf.config import BadInput, DemoArguments, PPOArguments, RewardArguments
from rlhf.launch import jobs
from rlhf.runs.directory import Run
from rlhf.ui import already_started, live


WORKS = """
import json, sys, time
work = json.loads(sys.stdin.readline())
from rlhf.runs.directory import Run
run = Run(work["settings"]["output_dir"])
run.start(1)
(run.path / "work.json").write_text(json.dumps(work))
run.finish("finished")
"""


@pytest.fixture
def under_way(root, monkeypatch):
    """A run that has the machine until it is finished; those after it get a process that notes what it is given."""
    monkeypatch.setattr(jobs, "prepare", lambda: None)
    monkeypatch.setattr(
        jobs,
        "_take_worker",
        lambda: subprocess.Popen([sys.executable, "-c", WORKS], stdin=subprocess.PIPE, env=jobs._environment()),
    )
    run = Run.create(root / "ppo-20260101-000000-abcd", "ppo", {})
    run.start(10)
    others = set(threading.enumerate())
    yield run
    for waits in set(threading.enumerate()) - others:  # who waits for a process begins the next run of its folder
        waits.join(60)


def state(run):
    return run.status()["state"]


def until(condition):
    deadline = time.time() + 60
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)


def test_runs_begin_in_turn_with_their_own_settings(under_way):
    queue = [jobs.launch("reward", RewardArguments(seed=seed)) for seed in range(3)]
    assert [state(run) for run in queue] == ["waiting"] * 3
    assert [run.id for run in jobs.waiting()] == [run.id for run in queue]
    assert jobs.active_run().id == under_way.id
    under_way.finish("finished")
    jobs.advance()
    until(lambda: all(state(run) == "finished" for run in queue))
    works = [json.loads((run.path / "work.json").read_text()) for run in queue]
    assert [(work["kind"], work["settings"]["seed"]) for work in works] == [("reward", seed) for seed in range(3)]
    begun = [run.status()["started"] for run in queue]
    assert begun == sorted(begun) and jobs.waiting() == []


def test_a_page_that_is_started_again_finds_the_queue_and_goes_on(under_way):
    run = jobs.launch("reward", RewardArguments())
    under_way.finish("finished")
    code = "from rlhf.launch import jobs; print([run.id for run in jobs.waiting()], jobs.active_run())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == f"[{run.id!r}] None"
    jobs.advance()  # as `jobs.watch` does
    until(lambda: state(run) == "finished")


def test_a_run_leaves_the_queue_by_stop_of_who_started_it(under_way, monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    first, second = (jobs.launch("reward", RewardArguments(), visitor=name) for name in ("ann", "bob"))
    with pytest.raises(BadInput, match="Only the browser that started this run"):
        jobs.stop(second, "ann")
    jobs.stop(first, "ann")
    assert (state(first), first.status()["message"]) == ("stopped", "It left the queue before it began.")
    assert [run.id for run in jobs.waiting()] == [second.id] and not (first.path / "stop").exists()
    assert state(under_way) == "running"


def test_on_a_page_for_others_each_browser_has_one_place_and_a_space_three(under_way, monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    for name in ("ann", "bob", "cem", "dan"):
        jobs.launch("reward", RewardArguments(), visitor=name)
    for visitor in ("ann", "dan"):
        with pytest.raises(BadInput, match="A run of yours waits already"):
            jobs.launch("demo", DemoArguments(), visitor=visitor)
    monkeypatch.setenv("SPACE_ID", "me/lab")
    with pytest.raises(BadInput, match="3 runs wait already"):
        jobs.launch("reward", RewardArguments(), visitor="eve")
    assert len(jobs.waiting()) == 4


def test_a_double_click_is_one_run_and_says_so(under_way):
    asked = time.time()
    first = jobs.launch("reward", RewardArguments(seed=1), visitor="ann")
    assert jobs.launch("reward", RewardArguments(seed=1), visitor="ann").id == first.id
    assert jobs.launch("reward", RewardArguments(seed=2), visitor="ann").id != first.id
    assert jobs.launch("reward", RewardArguments(seed=2), visitor="bob").id not in {first.id, jobs.waiting()[1].id}
    assert len(jobs.waiting()) == 3
    assert already_started(first, asked) == ""
    assert already_started(first, time.time()).startswith("This run was started a moment ago.")


def test_the_page_says_whose_turn_it_is_and_about_when(under_way):
    under_way.set_status(seconds_left=240)
    first = jobs.launch("demo", DemoArguments())
    second = jobs.launch("ppo", PPOArguments(reward_model_path="example"))
    said = live.poll({"run": first.id})
    assert said["state"] == "waiting" and said["headline"]["details"].endswith("Stop takes the run out of the queue.")
    title = under_way.title()
    assert said["headline"]["text"] == f"Next in line, behind {title}: it starts in about 4 minutes."
    text = live.poll({"run": second.id})["headline"]["text"]
    assert text.startswith(f"Number 2 in line, behind {title} and 1 more: it starts in about ")


def test_a_run_is_moved_in_the_queue_and_stays_at_its_ends(under_way):
    first, second, third = (jobs.launch("reward", RewardArguments(seed=seed)) for seed in range(3))
    for run, places, order in (
        (third, -1, (first, third, second)),
        (third, -1, (third, first, second)),
        (third, -1, (third, first, second)),
        (third, 5, (first, second, third)),
        (first, 1, (second, first, third)),
    ):
        jobs.move(run, places)
        assert [one.id for one in jobs.waiting()] == [one.id for one in order]
    with pytest.raises(BadInput, match="does not wait any more"):
        jobs.move(under_way, 1)
    under_way.finish("finished")
    jobs.advance()
    until(lambda: all(state(run) == "finished" for run in (first, second, third)))
    assert [run.id for run in sorted((first, second, third), key=lambda run: run.status()["started"])] == [
        run.id for run in (second, first, third)
    ]


def test_no_run_is_lost_or_begun_twice_while_the_queue_is_reordered_and_runs_come_and_go(under_way, monkeypatch):
    begun, hand_over = [], jobs._hand_over
    monkeypatch.setattr(jobs, "_hand_over", lambda *given: (begun.append(given[1].id), hand_over(*given)))
    queue = [jobs.launch("reward", RewardArguments(seed=seed)) for seed in range(4)]
    times, refused, waiting = sorted(run.status()["queued"] for run in queue), [], jobs.waiting
    monkeypatch.setattr(jobs, "waiting", lambda: [*waiting(), time.sleep(0.002)][:-1])  # in which others may come

    def reorder(step):
        for number in range(60):
            try:
                jobs.move(queue[(number * step) % 4], (-1) ** number)
            except BadInput as error:  # it has begun meanwhile
                refused.append(str(error))

    def come():
        queue.append(jobs.launch("reward", RewardArguments(seed=9)))
        jobs.stop(queue[-1])

    threads = [threading.Thread(target=reorder, args=(step,)) for step in (1, 3)] + [threading.Thread(target=come)]
    for thread in threads:
        thread.start()
    under_way.finish("finished")
    jobs.advance()
    for thread in threads:
        thread.join(60)
    until(lambda: [state(run) for run in queue] == ["finished"] * 4 + ["stopped"])
    assert set(times) <= {run.status()["queued"] for run in queue}  # the fifth may have changed places too
    assert set(refused) <= {"This run does not wait any more."}
    assert sorted(begun) == sorted(run.id for run in queue[:4])


def test_a_run_is_deleted_only_once_it_has_ended(under_way):
    waits = jobs.launch("reward", RewardArguments())
    assert not jobs.remove(under_way) and not jobs.remove(waits)
    jobs.stop(waits)
    assert jobs.remove(waits) and not waits.path.exists()
    under_way.finish("finished")
    assert jobs.remove(under_way) and not under_way.path.exists()
