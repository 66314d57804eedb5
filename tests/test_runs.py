"""The run directory, and the processes that write it."""

import fcntl
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import islice
from pathlib import Path

import psutil
import pytest

from rlhf.config import ASSETS, BadInput, PPOArguments, RewardArguments
from rlhf.config.recipes import read_settings
from rlhf.launch import jobs, limits
from rlhf.launch.start import start_run
from rlhf.runs import checkpoint
from rlhf.runs.directory import ACTIVE, EXAMPLE, Run, find_run, list_runs
from rlhf.runs.files import read_json, write_json
from rlhf.runs.history import rows_of, unreadable
from rlhf.ui import refusal, run_choices, scores, train, voices
from rlhf.write.export import as_command


def test_a_directory_that_exists_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(BadInput, match="already exists"):
        Run.create(tmp_path / "mine", "ppo", {})
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_tail_never_sees_half_a_line(tmp_path):
    run = Run.create(tmp_path / "run", "ppo", {})
    run.log({"step": 1, "loss": float("nan")})
    lines, offset = run.tail("metrics.jsonl")
    assert lines[0]["step"] == 1 and lines[0]["loss"] is None  # strict JSON
    path = run.path / "metrics.jsonl"
    logged = (EXAMPLE / "ppo" / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:3]
    for line in (json.dumps({"a\u00e9b": 0.5}, ensure_ascii=False).encode() + b"\n", *logged):
        before = path.read_bytes()
        for cut in range(len(line)):
            path.write_bytes(before + line[:cut])
            assert run.tail("metrics.jsonl", offset) == ([], offset)
        path.write_bytes(before + line)
        lines, offset = run.tail("metrics.jsonl", offset)
        assert lines == [json.loads(line)] and offset == path.stat().st_size


def test_a_log_that_was_cut_and_written_on_is_read_anew(tmp_path):
    """As a run that goes on from a checkpoint does, also where it is longer by the time somebody looks."""
    run = Run.create(tmp_path / "run", "ppo", {})
    run.log({"step": 1})
    kept = run.log_sizes()
    for step in (2, 3):
        run.log({"step": step})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"torn\n')
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3]
    assert unreadable(run) == ["1 line of metrics.jsonl"]
    run._cut(kept)
    for step in (2, 3, 4, 5):
        run.log({"step": step})
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 4, 5] and unreadable(run) == []


@pytest.mark.parametrize("damage", ["[1]", '{"created": "x", "kind": 7}', '"text"', "{", "\xff", "[" * 100_000])
def test_a_damaged_run_hides_no_other(root, damage):
    whole = Run.create(root / "ppo-20260101-000000-0001", "ppo", {})
    for name in ("status.json", "config.json", "summary.json", "about.json"):
        broken = Run.create(root / f"ppo-20260101-000000-{len(list(root.iterdir())) + 1:04}", "ppo", {})
        (broken.path / name).write_text(damage, encoding="latin-1")
    whole.log({"step": 1})
    with (whole.path / "metrics.jsonl").open("a", encoding="latin-1") as file:
        file.write(f"{damage}\n")
    whole.log({"step": 2})
    assert [row["step"] for row in whole.metrics() if "step" in row] == [1, 2]
    assert whole.id in [run_id for _, run_id in run_choices()]
    assert jobs.active_run() is None and "example" in [run_id for _, run_id in train.reward_runs()]


def test_threads_may_write_a_status_at_once(tmp_path):
    def write():
        for number in range(300):
            write_json(tmp_path / "status.json", {"step": number})

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(write) for _ in range(4)]:
            done.result()
    assert read_json(tmp_path / "status.json") == {"step": 299}


def test_progress_tells_the_time_left_and_stop_reaches_a_demos_stages(tmp_path):
    demo = Run.create(tmp_path / "demo", "demo", {})
    stage = Run.create(demo.path / "ppo", "ppo", {})
    stage.start(10)
    stage.set_status(started=time.time() - 4)
    stage.progress(4, 10)
    assert stage.status()["seconds_left"] == pytest.approx(6, abs=0.5)
    assert stage.status()["state"] == "running"
    stage.start(10, step=6)  # resumed after six steps
    stage.set_status(started=time.time() - 4)
    stage.progress(8, 10)
    assert stage.status()["seconds_left"] == pytest.approx(4, abs=0.5)
    demo.request_stop()
    assert stage.stop_requested()
    stage.progress(9, 10)
    assert stage.status()["state"] == "stopping"


def test_a_file_called_stop_outside_of_a_run_stops_nothing(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "runs" / "demo", ignore=shutil.ignore_patterns("*.safetensors"))
    demo = Run(tmp_path / "runs" / "demo")
    again = Run(demo.path / "compare" / "ppo-seed-1")  # a training within the demo's comparison
    for folder in (tmp_path / "runs", tmp_path):
        (folder / "stop").touch()
    assert not demo.stop_requested() and not again.stop_requested()
    demo.request_stop()
    assert demo.stop_requested() and again.stop_requested()


def test_a_run_knows_what_lies_inside(tmp_path):
    demo = Run(EXAMPLE)
    assert list(demo.stages()) == ["reward", "ppo", "compare"] and list(demo.trainings()) == ["reward", "ppo"]
    assert demo.model("policy") == EXAMPLE / "ppo" / "model" and demo.comparison() == EXAMPLE
    assert demo.reward_model_path() == str(EXAMPLE / "reward")
    assert demo.sweep() == Run(EXAMPLE / "sweep").sweep() and demo.sweep()["points"]
    reward = demo.stages()["reward"]
    assert reward.stages() == {"reward": reward} and reward.model("reward") and reward.model("policy") is None
    # A demo that was given a reward model trains none.
    given = Run.create(tmp_path / "demo", "demo", {**demo.config(), "reward_model_path": str(EXAMPLE)})
    assert list(given.stages()) == ["ppo", "compare"] and given.reward_model_path() == str(EXAMPLE)
    assert given.model("policy") is given.comparison() is None and given.sweep() == {}


@pytest.mark.parametrize(
    "run_id",
    [
        "../secret",
        "mine/../../secret",
        "mine/ppo",
        "",
        ".",
        "..",
        "a\0b",
        "ppo-20260101-000000-abcd",
        "x" * 300,
        "notes",
    ],
)
def test_only_ids_of_real_runs_are_found(root, run_id):
    Run.create(root / "mine" / "ppo", "ppo", {})
    Run.create(root.parent / "secret", "ppo", {})
    (root / "notes").mkdir()
    (root / "mine" / "status.json").write_text("{}")
    with pytest.raises(BadInput):
        find_run(run_id)


def test_a_run_of_the_command_line_under_a_name_of_ones_own_is_on_the_page(root):
    (root / "not a run").mkdir(parents=True)
    for number, name in enumerate(("ppo-20200101-000000-abcd", "my first run", "mine")):
        run = Run.create(root / name, "ppo", {"seed": 3})
        run.set_status(state="finished", created=time.time() - 100 + number)
    assert [found.id for found in list_runs()] == ["mine", "my first run", "ppo-20200101-000000-abcd"]
    labels = {run_id: label for label, run_id in run_choices()}
    assert labels["mine"].startswith("mine · PPO · ") and labels["my first run"].endswith(" · finished")
    assert not labels["ppo-20200101-000000-abcd"].startswith("ppo")
    assert find_run("my first run").config()["seed"] == 3
    assert '<a href="?run=my%20first%20run">' in refusal(jobs.UnderWay(find_run("my first run"), ""))


def test_a_run_whose_process_is_gone_is_marked_interrupted(root):
    run = Run.create(root / "ppo-20260101-000000-abcd", "ppo", {})
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    run.start(10)
    status = {**run.status(), "pid": gone.pid, "updated": time.time() - 5}
    (run.path / "status.json").write_text(json.dumps(status))
    assert jobs.active_run() is None
    assert run.status()["state"] == "interrupted"
    assert [found.id for found in list_runs()] == [run.id]


@pytest.fixture
def stranger():
    """Somebody else's process."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("began", [None, 1.0, "x"])
@pytest.mark.parametrize("state", [state for state in ACTIVE if state != "waiting"])
def test_a_process_that_got_the_id_of_a_runs_own_is_neither_taken_for_it_nor_ended(root, stranger, began, state):
    run = Run.create(root / "ppo-20260101-000000-abcd", "ppo", {})
    run.start(10)
    status = {**run.status(), "state": state, "pid": stranger.pid, "began": began}
    (run.path / "status.json").write_text(json.dumps(status))
    jobs.stop(run)
    time.sleep(0.3)
    assert stranger.poll() is None
    (run.path / "status.json").write_text(json.dumps({**status, "updated": time.time() - 5}))
    assert jobs.active_run() is None and stranger.poll() is None
    assert run.status().get("state") in ("interrupted", "stopped", None)  # None: it could not be read


def test_every_run_whose_process_is_gone_is_found_while_nobody_looks(root, monkeypatch):
    """Also one beside a run that goes on, one whose clock is ahead, and after the disk was full for a moment."""
    alive = Run.create(root / "ppo-20260103-000000-abcd", "ppo", {})
    alive.start(10)
    gone = []
    for number, (state, updated) in enumerate((("queued", -60), ("running", -60), ("stopping", 10**6))):
        run = Run.create(root / f"ppo-20260101-000000-000{number}", "ppo", {})
        status = {**run.status(), "state": state, "pid": 2**22, "began": 1.0, "updated": time.time() + updated}
        (run.path / "status.json").write_text(json.dumps(status))
        gone.append(run)
    finish, refusals, looks = Run.finish, iter([True]), iter([None, None])

    def full(run, *words):
        if next(refusals, False):
            raise OSError(28, "No space left on device")
        finish(run, *words)

    monkeypatch.setattr(Run, "finish", full)
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: next(looks))
    with pytest.raises(StopIteration):
        jobs.watch()
    assert [run.status()["state"] for run in gone] == ["interrupted"] * 3
    assert gone[0].status()["message"].startswith("Its process is gone: it was ended from outside")
    assert alive.status()["state"] == "running" and jobs.SECONDS_BETWEEN_LOOKS + 2 <= 5


def test_a_child_that_was_killed_says_so_and_leaves_no_zombie(root, stranger):
    """Its end is told by who waits for it, also where somebody looks in between."""
    run = Run.create(root / "ppo-20260101-000000-abcd", "ppo", {})
    run.start(10)
    run.set_status(pid=stranger.pid)
    (run.path / "train.log").write_text(BAR, encoding="utf-8")
    stranger.kill()
    os.waitid(os.P_PID, stranger.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has waited for it
    (run.path / "status.json").write_text(json.dumps({**run.status(), "updated": time.time() - 5}))
    assert jobs.active_run().id == run.id
    jobs._wait(stranger, run)
    assert run.status()["state"] == "failed" and "ended by the system (signal 9)" in run.status()["message"]
    assert not psutil.pid_exists(stranger.pid)


def test_a_running_process_is_found(root):
    run = Run.create(root / "ppo-20260101-000000-abcd", "ppo", {})
    run.start(10)
    assert run.status()["pid"] == os.getpid()
    assert jobs.active_run().id == run.id


@pytest.mark.process
def test_a_setting_that_begins_with_a_dash_reaches_the_process_as_it_was_entered(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs._ready = None  # one that an earlier test left ready would not be in this folder
    with gzip.open(ASSETS / "preferences.jsonl.gz", "rt") as pairs:
        (tmp_path / "-pairs.jsonl").write_text("".join(islice(pairs, 60)))
    entered = {"dataset_name": "-pairs.jsonl", "max_steps": "1e0", "per_device_train_batch_size": "4", "seed": "3"}
    run = start_run("reward", entered)
    queued, deadline = run.config(), time.time() + 240
    while run.status()["state"] in ACTIVE and time.time() < deadline:
        time.sleep(0.2)
    assert run.status()["state"] == "finished", run.status()
    settings = {field.name: run.config()[field.name] for field in fields(RewardArguments)}
    wanted = {"dataset_name": "-pairs.jsonl", "max_steps": 1, "per_device_train_batch_size": 4, "seed": 3}
    assert settings == vars(RewardArguments(**wanted, output_dir=str(run.path)))
    assert queued == {"kind": "reward", **settings} and set(run.config()) > set(queued)
    assert as_command(run) == (
        "python -m rlhf reward --dataset_name=-pairs.jsonl --max_steps 1 --per_device_train_batch_size 4 --seed 3"
    )


@pytest.mark.process
def test_a_process_that_was_kept_ready_ends_with_the_page(root):
    code = "from rlhf.launch import jobs; jobs.prepare(); print(jobs._ready.pid)"
    page = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    deadline = time.time() + 60
    while psutil.pid_exists(int(page.stdout)) and time.time() < deadline:
        time.sleep(0.2)
    assert not psutil.pid_exists(int(page.stdout))


@pytest.mark.process
def test_a_run_goes_on_when_the_page_that_started_it_is_gone(root, few_pairs):
    settings = {"max_steps": 1, "dataset_name": str(few_pairs)}
    code = f"from rlhf.launch.start import start_run; print(start_run('reward', {settings}).path)"
    page = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    run = Run(page.stdout.strip())
    deadline = time.time() + 120
    while run.status()["state"] in ACTIVE and time.time() < deadline:
        time.sleep(0.2)
    assert run.status()["state"] == "finished"


@pytest.mark.process
def test_a_launched_process_that_fails_leaves_its_reason(root):
    run = jobs.launch("ppo", PPOArguments(reward_model_path=str(root / "nowhere")))
    deadline = time.time() + 60
    while run.status()["state"] in ("queued", "running") and time.time() < deadline:
        time.sleep(0.2)
    assert run.status()["state"] == "failed"
    assert "is neither a folder nor a Hub name" in run.status()["message"]
    assert "Traceback" not in (run.path / "train.log").read_text()


# Stop, and other ends ----------------------------------------------------------------------------------------------


def test_a_run_that_says_starting_is_stopped_at_once(root):
    """P1: it is stopped, not failed, and no path of the server is shown."""
    run = jobs.launch("reward", RewardArguments(max_steps=1))
    process = psutil.Process(run.status()["pid"])
    jobs.stop(run)
    assert run.status()["state"] == "stopped"
    assert run.status()["message"] == "Stopped. There was nothing to save yet."
    deadline = time.time() + 10
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.time() < deadline
        time.sleep(0.05)
    time.sleep(0.2)  # whoever waits for the process leaves the status as it is
    assert run.status()["state"] == "stopped"


def test_where_nothing_can_wait_a_second_start_names_the_first_run_and_says_stop_to_who_may(root, monkeypatch):
    """P2."""
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    run = Run.create(root / "ppo-20260101-000000-abcd", "ppo", {})
    run.start(10)
    run.set_status(seconds_left=240, owner=limits.mark("ann"))
    with pytest.raises(jobs.UnderWay) as refused:
        jobs.launch("reward", RewardArguments(), visitor="bob")
    assert str(refused.value).startswith(f"{run.title()} is still under way; stop it, or wait about 4 min")
    assert f'<a href="?run={run.id}">PPO · ' in refusal(refused.value)
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    with pytest.raises(jobs.UnderWay, match="which somebody else started, is still under way; wait about 4 min"):
        jobs.launch("reward", RewardArguments(), visitor="bob")


def test_the_best_finished_reward_model_is_preselected(root):
    """P2: never that of an interrupted run, however good."""
    made = []
    for number, (state, accuracy) in enumerate((("finished", 0.99), ("interrupted", None), ("finished", 0.5))):
        run = Run.create(root / f"reward-2026010{number + 1}-000000-000{number}", "reward", {})
        (run.path / "model").mkdir()
        (run.path / "model" / "config.json").write_text("{}")
        if accuracy:
            (run.path / "summary.json").write_text(json.dumps({"reward_model": {"accuracy": {"value": accuracy}}}))
        run.finish(state)
        made.append(run.id)
    assert [run_id for _, run_id in train.reward_runs()] == [made[0], "example", made[2], made[1]]


def test_what_a_stopped_run_lacks_is_said_of_its_end(root):
    """Not of what a run of its kind holds: it would have been compared, and it would have had a model to talk to."""
    run = Run.create(root / "demo-20260101-000000-abcd", "demo", {})
    run.finish("stopped", "Stopped.")
    assert scores.missing(run).startswith("The run ended before its models were compared. There was nothing to save")
    assert voices.absent(run).startswith("The run ended before there was a model to talk to.")
    ended = Run.create(root / "reward-20260101-000000-abcd", "reward", {})
    ended.finish("finished")
    assert "compared no models" in scores.missing(ended) and "trained no model to talk to" in voices.absent(ended)


def test_the_process_of_a_run_keeps_the_time_at_which_it_was_started(root):
    """P2: its label would change while somebody waits for it."""
    run = Run(root / "ppo-20260101-000000-abcd")
    run.path.mkdir(parents=True)
    run.set_status(state="queued", kind="ppo", created=1e9, pid=os.getpid())
    before = run.title()
    assert Run.create(run.path, "ppo", {}).title() == before


def test_what_cannot_be_read_or_made_is_a_sentence(tmp_path):
    with pytest.raises(BadInput, match="cannot be made .File name too long."):
        Run.create(tmp_path / ("x" * 300), "ppo", {})
    for written in (bytes(range(256)), "output_dir: \u00e9".encode("latin1"), "max_steps: 1".encode("utf-16")):
        (tmp_path / "settings.yaml").write_bytes(written)
        with pytest.raises(BadInput, match="settings.yaml is not valid YAML"):
            read_settings(tmp_path / "settings.yaml")
    folder = tmp_path / "checkpoint-1"
    with checkpoint.written_whole(folder) as aside:
        checkpoint.save(aside, {}, {})
    (folder / "MANIFEST.json").write_bytes(b"\xff junk")
    with pytest.raises(BadInput, match="checkpoint-1 is damaged .MANIFEST.json."):
        checkpoint.load(folder)


def test_only_a_run_that_ended_early_is_resumed_by_who_started_it_and_by_its_own_settings(root, monkeypatch):
    run = Run.create(root / "ppo-20260101-000000-abcd", "ppo", {"seed": 3, "kl_coef": 0.5, "output_dir": "gone"})
    run.set_status(created=1e9, owner=limits.mark("ann"))
    run.start(10)
    begun = []
    monkeypatch.setattr(jobs, "_hand_over", lambda worker, run, work: begun.append(json.loads(work)))
    monkeypatch.setattr(jobs, "_take_worker", lambda: None)
    monkeypatch.setattr(jobs, "_reap", lambda worker, run: None)
    for state in ("finished", "diverged"):
        run.finish(state)
        with pytest.raises(BadInput, match="Only a run that was stopped, failed or was interrupted"):
            jobs.resume(run)
    run.request_stop()
    run.finish("stopped")
    other = Run.create(root / "ppo-20260101-000000-0001", "ppo", {})
    other.start(10)
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    with pytest.raises(BadInput, match="Only the browser that started this run can stop, resume, rename or delete it"):
        jobs.resume(run, "bob")
    assert begun == [] and run.stop_requested()
    jobs.resume(run, "ann")
    assert run.status()["state"] == "waiting" and begun == []
    other.finish("finished")
    jobs.advance()
    settings = {"seed": 3, "kl_coef": 0.5, "output_dir": str(run.path), "resume_from_checkpoint": True}
    assert [(work["kind"], work["settings"]) for work in begun] == [("ppo", settings)] and not run.stop_requested()
    assert run.status()["created"] == 1e9 and run.status()["owner"] == limits.mark("ann")


BAR = "PPO:  12%|█         | 3/25 [00:10<01:00, 2.3s/ updates]"


@pytest.mark.parametrize(
    ("code", "log", "message"),
    [
        (-9, BAR, "ended by the system (signal 9), most often for"),
        (137, "", "ended by the system (signal 9), most often for lack of memory: lower the batch size"),
        (1, f"error: no such thing\n{BAR}\r", "no such thing"),
        (3, BAR, "The process ended with code 3"),
    ],
)
def test_a_process_that_ended_is_explained_by_how_and_not_by_its_progress_bar(root, code, log, message):
    """B35."""
    run = Run.create(root / "ppo-20260101-000000-abcd", "ppo", {})
    (run.path / "train.log").write_text(log, encoding="utf-8")
    assert message in jobs.why_it_ended(code, run) and "%|" not in jobs.why_it_ended(code, run)


GONE_ON_WITH = {
    "checkpoints/checkpoint-4/MANIFEST.json": "No model was saved; the curves and the checkpoint of step 4 are kept.",
    "model/config.json": "Saved: the PPO model as of step 0 of 10.",
    ".answered.json": "The answers of the models that were done are kept.",
}


@pytest.mark.parametrize("kept", GONE_ON_WITH)
def test_a_run_whose_process_is_gone_names_resume_where_there_is_something_to_go_on_from(root, kept):
    run = Run.create(root / "ppo-20260101-000000-abcd", "ppo", {})
    run.start(10)
    gone = {**run.status(), "pid": 2**22, "updated": 0}
    for expected in ("There was nothing to save yet.", f"{GONE_ON_WITH[kept]} Resume goes on from there."):
        write_json(run.path / "status.json", gone)
        assert jobs.why_it_ended(-9, run).endswith(f"smaller model. {expected}")
        assert jobs.active_run() is None and run.status()["message"].endswith(expected)
        (run.path / kept).parent.mkdir(parents=True, exist_ok=True)
        (run.path / kept).touch()


WORK = {"stopping": "import time; end = time.time() + 4\nwhile time.time() < end: pass", "interrupted": "input()"}


@pytest.mark.process
@pytest.mark.parametrize("state", WORK)
def test_a_run_that_is_stopped_is_waited_for_while_it_works_and_ended_when_it_does_nothing(root, monkeypatch, state):
    monkeypatch.setattr(jobs, "GRACE_SECONDS", 0.4)
    run = Run.create(root / "ppo-20260101-000000-abcd", "ppo", {})
    run.start(10)
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", WORK[state]], stdin=subprocess.PIPE, start_new_session=True
    )  # in a session of its own, as every run
    time.sleep(0.3)  # it has begun
    run.set_status(pid=process.pid)
    jobs.stop(run)
    deadline = time.time() + 2
    while time.time() < deadline and run.status()["state"] == "stopping":
        time.sleep(0.1)
    assert run.status()["state"] == state
    if state == "interrupted":
        assert "did nothing for" in run.status()["message"] and not psutil.pid_exists(process.pid)
    process.kill()
    process.wait()


def test_runs_start_and_stop_with_what_windows_has(root, tmp_path, monkeypatch):
    """B38, as far as simulation shows: no preexec_fn, no process groups, no SIGKILL, files held by others."""
    for module, name in ((os, "killpg"), (os, "nice"), (signal, "SIGKILL")):
        monkeypatch.delattr(module, name)
    init = subprocess.Popen.__init__

    def without_preexec(process, *args, preexec_fn=None, **settings):
        assert preexec_fn is None, "preexec_fn is not supported on Windows platforms"
        init(process, *args, **settings)

    monkeypatch.setattr(subprocess.Popen, "__init__", without_preexec)
    monkeypatch.setattr(jobs, "_ready", None)
    run = jobs.launch("reward", RewardArguments(max_steps=1))
    monkeypatch.undo()
    monkeypatch.setenv("RLHF_RUNS", str(root))
    for module, name in ((os, "killpg"), (signal, "SIGTERM")):
        monkeypatch.delattr(module, name)
    jobs.stop(run)
    assert run.status()["state"] == "stopped"

    fsync = os.fsync

    def only_writable(handle):
        assert fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY, "Bad file descriptor"
        fsync(handle)

    monkeypatch.setattr(os, "fsync", only_writable)
    monkeypatch.delattr(os, "O_DIRECTORY")  # and no folder can be opened
    with checkpoint.written_whole(tmp_path / "checkpoint-1") as aside:
        checkpoint.save(aside, {}, {})
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoint-1"
    replace, refusals = Path.replace, iter([True, True])

    def held(path, target):
        if next(refusals, False):
            raise PermissionError(13, "Access is denied")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", held)
    write_json(tmp_path / "status.json", {"state": "running"})
    assert read_json(tmp_path / "status.json") == {"state": "running"}
