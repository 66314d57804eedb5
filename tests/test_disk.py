"""A disk that is full, read-only or fails: a run ends as failed, what is whole is kept, and the page says so."""

import asyncio
import errno
import io
import json
import os
import resource
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from app import BodyLimit
from rlhf.commands.lifecycle import recorded
from rlhf.config import BadInput, RewardArguments
from rlhf.launch import jobs
from rlhf.runs import checkpoint, directory, disk
from rlhf.runs.directory import EXAMPLE, Run
from rlhf.runs.files import read_json
from rlhf.ui import downloads, live, train


FULL = "The disk is full"


@pytest.fixture
def refuse(monkeypatch):
    """Have each write to a file whose path holds this text fail, from the nth on."""
    opened = io.open

    def begin(text, number=errno.ENOSPC, after=0):
        count = iter(range(10_000))

        def open_(file, mode="r", *args, **settings):
            if set(mode) & set("wax+") and text in str(file) and next(count) >= after:
                raise OSError(number, os.strerror(number), str(file))
            return opened(file, mode, *args, **settings)

        monkeypatch.setattr("io.open", open_)
        monkeypatch.setattr("builtins.open", open_)

    return begin


@contextmanager
def small_files(size):
    """No file of this process may have more bytes: the system then refuses a write as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# What is told --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", ["python", "safetensors", "tokenizers", "torch"])
def test_each_librarys_way_to_say_that_the_disk_takes_no_more_is_understood(writer, tmp_path):
    tokenizer, numbers = AutoTokenizer.from_pretrained(EXAMPLE / "ppo" / "model"), torch.zeros(100_000)
    write = {
        "python": lambda file: file.write_bytes(bytes(400_000)),
        "safetensors": lambda file: save_file({"numbers": numbers}, file),
        "tokenizers": lambda file: tokenizer.save_pretrained(file),
        "torch": lambda file: torch.save(numbers, file),
    }[writer]
    with small_files(20_000), pytest.raises(BadInput, match="^The disk .*: free some space, and try again. Done.$"):
        with disk.told("Done."):
            write(tmp_path / "file")
    with pytest.raises(ValueError, match="^another$"), disk.told():
        raise ValueError("another")


def test_room_is_asked_for(tmp_path):
    disk.ask_for(1, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        disk.ask_for(10**18, tmp_path)


# Training ------------------------------------------------------------------------------------------------------------


PPO = (
    "ppo", "--reward_funcs", "length:5", "--total_episodes", 32, "--per_device_train_batch_size", 16,
    "--save_steps", 1, "--response_length", 4, "--ceiling_samples", 0, "--num_sample_generations", 1,
    "--output_dir", "run",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "number", "after", "told", "kept"),
    [
        ("metrics.jsonl", errno.EIO, 0, "The disk reports an error", "There was nothing to save yet."),
        ("samples.jsonl", errno.ENOSPC, 0, FULL, "There was nothing to save yet."),
        ("status.json", errno.EROFS, 3, "The disk is read-only", "the curves and the checkpoint of step 1 are kept."),
        ("saving/checkpoint-2", errno.ENOSPC, 2, FULL, "the curves and the checkpoint of step 1 are kept."),
        ("run/.model", errno.ENOSPC, 1, FULL, "the curves and the checkpoint of step 2 are kept."),
    ],
)  # fmt: skip
def test_a_write_that_fails_ends_the_run_and_what_is_whole_is_kept(
    text, number, after, told, kept, command, refuse, tmp_path, monkeypatch
):
    monkeypatch.setattr(directory, "_unwritten", {})
    refuse(text, number, after)
    done = command(*PPO)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    status = Run("run").status()
    assert status["state"] == "failed" and status["message"].endswith(kept), status
    assert status["message"].startswith(told) and " in the middle of the run: " in status["message"]
    assert not list(tmp_path.rglob("checkpoints/.*")) and not list(tmp_path.rglob(".model"))
    weights = list(tmp_path.rglob("model.safetensors"))
    assert all(tensor.isfinite().all() for file in weights for tensor in load_file(file).values())


def test_a_demo_says_what_all_its_stages_have_kept(tmp_path):
    demo = Run.create(tmp_path / "demo", "demo", {})
    reward, ppo = (Run.create(demo.path / kind, kind, {}) for kind in ("reward", "ppo"))
    (reward.path / "model").mkdir()
    (reward.path / "model" / "config.json").touch()
    with pytest.raises(BadInput, match="^The disk is full in the middle .* Saved: the reward model.$"):
        with recorded(demo), recorded(ppo):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert demo.status()["message"].endswith(" Saved: the reward model.")
    assert ppo.status()["message"].endswith(" There was nothing to save yet.")


def test_no_save_is_begun_without_room_for_it(command, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    assert command(*PPO).returncode == 2
    assert Run("run").status()["message"].startswith(FULL) and not list(tmp_path.rglob("*.safetensors"))


@pytest.fixture
def small_disk(tmp_path):
    """Gives a real file system of so many bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("Only root may mount a file system")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True, check=False)


@pytest.mark.parametrize("kind", ["ppo", pytest.param("reward", marks=pytest.mark.long)])
def test_a_save_without_room_deletes_the_oldest_checkpoint_and_tries_again(kind, command, few_pairs, small_disk):
    words = {
        "ppo": (*PPO[:-2], "--total_episodes", 1000),
        "reward": ("reward", "--dataset_name", few_pairs, "--per_device_train_batch_size", 2, "--save_steps", 1),
    }[kind]
    assert command(*words, "--max_steps", 1, "--output_dir", "plenty").returncode == 0
    size = directory.size(Path("plenty/checkpoints"))
    room = small_disk(int(2.2 * size)) / "run"
    done = command(*words, "--max_steps", 3, "--save_total_limit", 2, "--output_dir", room)
    assert done.returncode == 0 and Run(room).status()["state"] == "finished", Run(room).status()
    # The model had no room beside the last two checkpoints either.
    assert list(map(checkpoint.step_of, checkpoint.folders(room / "checkpoints"))) == [3]
    assert checkpoint.newest(room / "checkpoints") and Run(room).model("policy" if kind == "ppo" else "reward")
    with pytest.raises(OSError, match="No space left"):  # the last one stays, however little room there is
        checkpoint.with_room(room / "checkpoints", lambda: disk.ask_for(10**18, room))
    assert checkpoint.newest(room / "checkpoints")


def test_a_checkpoint_of_a_reward_model_that_was_cut_off_is_removed(command, few_pairs, tmp_path):
    settings = ("--max_steps", 1, "--per_device_train_batch_size", 2, "--save_steps", 1, "--eval_steps", 9)
    with small_files(1_000_000):
        done = command("reward", "--dataset_name", few_pairs, *settings, "--output_dir", "run")
    assert done.returncode == 2 and "The disk takes no file of this size in the middle of the run" in done.stderr
    assert Run("run").status()["state"] == "failed" and not list(tmp_path.rglob("checkpoint-1"))


def test_a_command_that_makes_no_run_says_it_too(command, refuse):
    refuse(".config.json")
    done = command(*PPO)
    assert done.returncode == 2 and done.stderr.endswith(f"error: {FULL}: free some space, and try again.\n")


# The status of a run whose end can hardly be written -----------------------------------------------------------------


@pytest.fixture
def run(root, monkeypatch):
    """A run whose process is gone."""
    monkeypatch.setattr(directory, "_unwritten", {})
    run = Run.create(root / "ppo-20260101-000000-abcd", "ppo", {})
    run.start(10)
    status = {**run.status(), "pid": 2**22 + 1, "updated": 0}
    (run.path / "status.json").write_text(json.dumps(status))
    return run


def test_a_full_disk_takes_the_last_status_where_the_old_one_lies(run, refuse):
    refuse(".status.json.")
    run.finish("failed", "The disk is full.")
    written = read_json(run.path / "status.json")
    assert written["state"] == "failed" and written["message"] == "The disk is full." and written["total_steps"] == 10
    assert not directory._unwritten


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_dead_process_is_not_called_running_where_nothing_can_be_written(run, number, refuse):
    other = Run.create(run.path.with_name("elsewhere") / run.id, "ppo", {})
    refuse("status.json", number)
    assert jobs.active_run() is None
    assert read_json(run.path / "status.json")["state"] == "running"
    news = live.poll({"run": run.id})
    assert news["state"] == "interrupted"
    assert f"{disk.TROUBLE[number][0]}. Its process is gone" in news["headline"]["text"]
    (other.path / "status.json").replace(run.path / "status.json")
    assert run.status()["state"] == "queued"  # another run under the same name


# The page ------------------------------------------------------------------------------------------------------------


def test_start_stop_and_download_answer_in_a_sentence_and_leave_nothing_behind(root, run, refuse, monkeypatch):
    view = SimpleNamespace(GRADIO_CACHE=str(root / ".page"), temp_files=set())
    refuse("config.json")
    jobs.active_run()
    with pytest.raises(BadInput, match="^The disk is full: free some space, and try again. No run was started.$"):
        jobs.launch("reward", RewardArguments())
    assert [folder.name for folder in root.iterdir()] == [run.id]
    refuse(".zip")
    with pytest.raises(BadInput, match=f"^{FULL}: free some space, and try again. The run itself is as it was.$"):
        downloads.offer(view, {"run": run.id}, downloads.zip_of)
    assert not [file for file in root.rglob("*zip*") if file.is_file()]
    run.set_status(state="running", pid=os.getpid())
    refuse("status.json")
    assert train._stop(run.id, "")[1]["text"] == f"{FULL}: free some space, and try again."


def test_an_upload_larger_than_the_room_is_not_begun(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000))
    sent = []

    async def send(message):
        sent.append(message)

    request = {"type": "http", "path": "/gradio_api/upload", "headers": [(b"content-length", b"2000")]}
    asyncio.run(BodyLimit(None)(request, None, send))
    assert sent[0]["status"] == 507 and sent[1]["body"].startswith(b"The disk is full")


@pytest.mark.parametrize("begun", [False, True])
def test_an_upload_for_which_there_is_no_room_is_answered_in_a_sentence(begun):
    sent = []

    async def upload(scope, receive, send):
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def send(message):
        sent.append(message)

    request = BodyLimit(upload)({"type": "http", "path": "/gradio_api/upload", "headers": []}, None, send)
    if begun:  # it is too late to say anything
        with pytest.raises(OSError, match="No space left"):
            asyncio.run(request)
    else:
        asyncio.run(request)
        assert sent[0]["status"] == 507 and sent[1]["body"] == b"The disk is full: free some space, and try again."
