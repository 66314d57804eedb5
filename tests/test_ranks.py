"""Several processes give what one gives, write as one, and end as one: real launches on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import ranks_script
from processes import ROOT, free_port, keep_signals

from rlhf.__main__ import main
from rlhf.data import load_preferences


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no")
ACCELERATE += ("--dynamo_backend", "no", "--main_process_port", "0", "--num_processes", "2")  # any port that is free
"""Accelerate's launcher takes seconds to import what it does not need, and then runs torchrun's."""
SCRIPT = ROOT / "tests" / "ranks_script.py"
PPO = ("ppo", "--reward_model_path", ROOT / "assets" / "example" / "reward", "--num_sample_generations", 1)
PPO += ("--num_mini_batches", 2, "--num_ppo_epochs", 2, "--response_length", 12)
CLOCK = ("time", "eps", "tokens_per_second", "total_flos")
CLOCK += tuple(f"{part}_{what}" for part in ("eval", "train") for what in ("runtime", "samples_per", "steps_per"))
"""How metrics begin that tell the time or count the work."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start a command of the program in two processes, by a launcher; it runs on."""
    place = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}

    def go(*words, launcher=TORCHRUN):
        words = words if str(words[0]).endswith(".py") else ("-m", "rlhf", *words)
        process = subprocess.Popen(
            [sys.executable, *map(str, (*launcher, *words))],
            cwd=place,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    started = []
    yield go
    for process in started:
        process.terminate()  # only those that a failed test has left behind are still there


def finish(process):
    """Wait for the end of a command, which must be a good one."""
    _, said = process.communicate(timeout=180)
    assert process.returncode == 0, said[-3000:]


def alone(*words):
    """The same command in one process, which is this one."""
    with keep_signals():
        assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def lines_of(run, name="metrics.jsonl"):
    path = run / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_alike(one, other):
    """The same lines with the same keys and, the clock apart, the same numbers but for rounding."""
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            if not key.startswith(CLOCK):
                # Within the range the two value losses are equal but for rounding, which may count as clipped.
                off = 0.1 if key == "val/clipfrac_avg" else 1e-5
                assert theirs[key] == pytest.approx(value, rel=1e-3, abs=off), (mine.get("step"), key)


def wait_for_lines(process, run):
    """Wait for the first lines of a run."""
    until = time.time() + 180
    while not lines_of(run):
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.time() < until, "the run did not begin"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def launched(start, folder):
    """Folders with the same runs made in one process and in two: `ppo` with four updates, `reward` with six steps.

    `resumed` is the second half of `ppo`, from the checkpoint that the other number of processes has saved. The two
    go on to a run that is `stopped`, and to one in which the rank that does not write is killed, `died`; what the
    launcher's exit code is then, comes third.
    """
    pairs = folder / "pairs.jsonl"
    rows = load_preferences("everyday")[0].select(range(80))
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two = folder / "one", folder / "two"

    def commands(processes, mine, other):
        size = ("--per_device_train_batch_size", 8 // processes)
        updates = (*PPO, *size, "--max_steps", 4, "--ceiling_samples", 0)
        steps = ("reward", *size, "--per_device_eval_batch_size", 8 // processes, "--max_steps", 6)
        steps += ("--dataset_name", pairs, "--logging_steps", 1, "--eval_steps", 3)
        checkpoint = other / "ppo" / "checkpoints" / "checkpoint-2"
        endless = (*PPO, *size, "--max_steps", 1000, "--ceiling_samples", 0)
        return [
            (*updates, "--save_steps", 2, "--output_dir", mine / "ppo"),
            (*steps, "--output_dir", mine / "reward"),
            (*updates, "--resume_from_checkpoint", checkpoint, "--output_dir", mine / "resumed"),
            (*endless, "--output_dir", mine / "stopped"),
            (*endless, "--output_dir", mine / "died"),
        ]

    in_one, in_two = commands(1, one, two), commands(2, two, one)
    for words in in_one[:2]:
        alone(*words)
    (folder / "commands.json").write_text(json.dumps([list(map(str, words)) for words in in_two]))
    process = start(SCRIPT, "commands", folder / "commands.json")
    wait_for_lines(process, two / "stopped")
    (two / "stopped" / "stop").touch()
    wait_for_lines(process, two / "died")
    alone(*in_one[2])
    writer = json.loads((two / "died" / "status.json").read_text())["pid"]
    ranks = [child.pid for child in psutil.Process(process.pid).children()]
    (other,) = (pid for pid in ranks if pid != writer)
    os.kill(other, signal.SIGKILL)
    process.communicate(timeout=60)
    return one, two, process.returncode


@pytest.fixture
def one_and_two(launched):
    return launched[:2]


def test_two_processes_learn_as_one_does_with_the_same_batch(one_and_two):
    one, two = (lines_of(runs / "ppo") for runs in one_and_two)
    assert [line["step"] for line in two] == [1, 2, 3, 4]
    assert_alike(one, two)


def test_one_process_writes_the_run(one_and_two):
    one, two = (runs / "ppo" for runs in one_and_two)
    assert sorted(path.relative_to(one) for path in one.rglob("*")) == sorted(
        path.relative_to(two) for path in two.rglob("*")
    )
    assert len(lines_of(two, "samples.jsonl")) == len(lines_of(one, "samples.jsonl")) > 0
    status = json.loads((two / "status.json").read_text())
    assert (status["state"], status["step"], status["total_steps"]) == ("finished", 4, 4)


def test_a_checkpoint_goes_on_in_another_number_of_processes(one_and_two):
    whole = lines_of(one_and_two[0] / "ppo")
    for runs in one_and_two:
        assert_alike(whole[2:], lines_of(runs / "resumed"))


def test_reward_training_in_two_processes_learns_as_in_one(one_and_two):
    one, two = (runs / "reward" for runs in one_and_two)
    assert_alike(lines_of(one), lines_of(two))
    assert len([line for line in lines_of(two) if "loss" in line]) == 6
    assert (two / "model" / "model.safetensors").exists()
    loss_of_one, loss_of_two = (
        json.loads((run / "summary.json").read_text())["reward_model"]["loss"]["value"] for run in (one, two)
    )
    assert loss_of_two == pytest.approx(loss_of_one, abs=1e-5)


def test_settings_of_all_kinds_give_the_same_in_three_processes(start, folder):
    in_three = start(SCRIPT, "world", folder, 2, 3, free_port(), launcher=())
    one = {name: ranks_script.run(folder / "alone", 6, name) for name in ranks_script.SETTINGS}
    finish(in_three)
    three = json.loads((folder / "3.json").read_text())
    for name, found in one.items():
        assert_alike([*found["log"], found["eval"]], [*three[name]["log"], three[name]["eval"]])
    assert one["careful"]["log"][0]["policy/epochs_run"] < 3  # early stopping had its say


def test_a_wish_to_stop_ends_all_at_the_same_step_and_saves(launched):
    run = launched[1] / "stopped"
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "stopped" and status["step"] == lines_of(run)[-1]["step"]
    assert (run / "model" / "model.safetensors").exists()


def test_a_process_that_dies_ends_the_others(launched):
    _, two, code = launched
    assert code != 0
    assert json.loads((two / "died" / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize(
    ("launcher", "words", "message"),
    [
        (TORCHRUN, (*PPO, "--learning_rate", "abc"), "learning_rate must be a number"),  # an error of all
        (ACCELERATE, (*PPO, "--output_dir", "."), "already exists"),  # an error of the one that writes
    ],
    ids=["torchrun", "accelerate"],
)
def test_a_mistake_gets_one_sentence_and_ends_all(start, tmp_path, launcher, words, message):
    (tmp_path / "taken").touch()
    words = [tmp_path if word == "." else word for word in words]
    process = start(*words, launcher=launcher)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
