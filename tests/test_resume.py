"""A run that was killed, stopped or failed goes on, and leaves what an undisturbed one leaves."""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch
from processes import ROOT
from safetensors.torch import load_file
from worlds import chat_model, quick, updates_of

from rlhf.__main__ import main, make_run
from rlhf.launch import jobs
from rlhf.ppo.resuming import restore
from rlhf.runs import checkpoint
from rlhf.runs.directory import Run
from rlhf.runs.files import write_json


TIMED = ("time", "eps", "tokens_per_second", "train_runtime", "train_samples_per", "train_steps_per", "eval_runtime",
         "eval_samples_per", "eval_steps_per")  # fmt: skip
"""How the metrics begin that tell the time."""
KILLS = {
    "ppo": ("/.config.json", "os.rename .*/checkpoint-2$", "open .*/checkpoint-4/state.json"),
    "reward": ("open .*/checkpoint-2/trainer_state.json", "os.rmdir .*checkpoints/checkpoint-2$"),
    "demo": ("open .*/ppo/checkpoints/.saving/checkpoint-4/MANIFEST.json", "os.rename .*/scores.csv"),
    "dpo": ("open .*/checkpoint-4/MANIFEST.json",),
    "sweep": ("open .*/kl_coef-0-seed-0/checkpoints/.saving/checkpoint-2/MANIFEST.json", "os.rename .*.answered.json"),
    "ppo with adapters": ("open .*/checkpoint-4/state.json",),
    "reward with adapters": ("open .*/checkpoint-2/trainer_state.json", "os.rmdir .*checkpoints/checkpoint-2$"),
}
"""Where each is killed, one time after the other: before it has begun, in a save that is whole already, in one that is
not, while the oldest checkpoint is deleted; in the second of a demo's stages, and at its end."""
USUAL = ("ppo", "reward", "demo")
ALWAYS = (*USUAL, "reward with adapters")
"""The kinds that are killed without --long too; a model with adapters is in training mode where others are not."""


def settings_of(kind, folder):
    training = ("--per_device_train_batch_size", 4, "--save_steps", 2, "--max_steps", 5)
    judged = ("--num_prompts", 4, "--samples", 1, "--ceiling_samples", 2, "--ceiling_prompts", 2)
    own = {
        "ppo": (*training, "--reward_funcs", "length:20", "--response_length", 4, "--num_sample_generations", 2,
                "--ceiling_samples", 2, "--ceiling_prompts", 2),
        "reward": (*training, "--max_length", 256, "--logging_steps", 3),
        "dpo": (*training, "--max_length", 256, "--logging_steps", 3, "--eval_steps", 4),
        "demo": (*judged, "--max_length", 256, "--reward_max_steps", 2, "--reward_batch_size", 4, "--save_steps", 2,
                 "--total_episodes", 20, "--per_device_train_batch_size", 4, "--response_length", 4,
                 "--allow_chance_reward", "true"),
        "sweep": (*judged, "--reward_funcs", "length:20", "--kl_coefs", "0", "0.1", "--total_episodes", 256,
                  "--checkpoints", 2, "--best_of", 2),
    }  # fmt: skip
    command, _, adapters = kind.partition(" with ")
    common = ("--model_name_or_path", folder / "model", "--dataset_name", folder / "pairs.jsonl")
    common += ("--use_peft", "true", "--lora_dropout", 0.1) if adapters else ()
    return [str(word) for word in (command, *common, *own[command], "--resume_from_checkpoint", "true")]


def task(kind, folder, name):
    """A run into the folder of this name."""
    return {"words": [*settings_of(kind, folder), "--output_dir", str(folder / name)]}


def killed_tasks(kind, folder, kills, name):
    """A run that is killed several times before it may go on to its end."""
    again = task(kind, folder, name)
    return [*({**again, "killed": when} for when in kills), again]


def world(folder, few_pairs):
    """A tiny model and a few pairs in a folder."""
    chat_model(folder / "model", template=False)
    with few_pairs.open() as pairs:
        (folder / "pairs.jsonl").write_text("".join(next(pairs) for _ in range(60)))
    return folder


def run_script(done, timeout=500):
    words = [sys.executable, ROOT / "tests" / "kill_script.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = subprocess.run(
        words, input=json.dumps(done), env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert script.returncode == 0, script.stderr[-3000:]
    return json.loads(script.stdout), script.stderr


@pytest.fixture(scope="module")
def killed(tmp_path_factory, few_pairs):
    """A folder with the runs of `tasks`, and with `saves/N`, each a checkpoint saved anew by who was killed at N."""
    folder = world(tmp_path_factory.mktemp("killed"), few_pairs)
    for number in range(1, 31):
        with checkpoint.written_whole(folder / "saves" / str(number) / "checkpoint-2") as aside:
            checkpoint.save(aside, {"weights": {"w": torch.zeros(3)}}, {"step": 2})
    saves = [{"save": str(path / "checkpoint-2"), "killed": int(path.name)} for path in (folder / "saves").iterdir()]
    trainings = [task(kind, folder, kind) for kind in ALWAYS]
    trainings += [each for kind in ALWAYS for each in killed_tasks(kind, folder, KILLS[kind], f"{kind}-killed")]
    codes, said = run_script(saves + trainings)
    assert codes[len(saves) :] == [-9 if each.get("killed") else 0 for each in trainings], said[-3000:]
    assert {-9, 0} == set(codes[: len(saves)])  # the last ones were killed at no event any more
    return folder


def untimed(run, name="metrics.jsonl"):
    return [{key: row[key] for key in row if not key.startswith(TIMED)} for row in run.tail(name)[0]]


def assert_same(whole, again):
    """What was killed has come to the same logs, models, scores and files as what was not."""
    files = {path.relative_to(whole) for path in whole.rglob("*")}
    assert files == {path.relative_to(again) for path in again.rglob("*")}
    for log in (path for path in files if path.suffix == ".jsonl"):
        one, other = (untimed(Run((run / log).parent), log.name) for run in (whole, again))
        assert one == other and len(one) > 1, log
    for file in (path for path in files if path.suffix == ".safetensors"):
        one, other = (load_file(run / file) for run in (whole, again))
        assert all(torch.equal(one[name], other[name]) for name in one), file
    for table in (path for path in files if path.suffix == ".csv"):
        assert (whole / table).read_text() == (again / table).read_text()
    assert {Run(path.parent).status()["state"] for path in again.rglob("status.json")} == {"finished"}


@pytest.mark.parametrize("kind", ALWAYS)
def test_a_run_that_was_killed_again_and_again_leaves_what_an_undisturbed_one_does(killed, kind):
    assert_same(killed / kind, killed / f"{kind}-killed")
    if kind != "demo":
        kept = checkpoint.folders(killed / f"{kind}-killed" / "checkpoints")
        assert list(map(checkpoint.step_of, kept)) == [4, 5]


@pytest.mark.process
@pytest.mark.parametrize("kind", ["ppo", "dpo"])
def test_a_run_that_was_stopped_and_is_resumed_saves_the_model_of_its_end(tmp_path, few_pairs, monkeypatch, kind):
    folder = world(tmp_path, few_pairs)
    words = [*settings_of(kind, folder), "--output_dir", str(tmp_path / "run")]
    run, log, begun = Run(tmp_path / "run"), Run.log, []
    monkeypatch.setattr(jobs, "_take_worker", lambda: None)
    monkeypatch.setattr(jobs, "_hand_over", lambda worker, run, work: begun.append(json.loads(work)))
    monkeypatch.setattr(jobs, "_reap", lambda worker, run: None)

    def stop_early(self, row):
        log(self, row)
        if row["step"] in (2, 3):
            self.request_stop()

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", stop_early)
        assert main(words) == 0
    stopped = run.status()["step"]
    assert run.status()["state"] == "stopped" and stopped < 5 and (run.path / "model" / "config.json").exists()
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path))
    jobs.resume(run)
    ((made, settings),) = [(work["kind"], work["settings"]) for work in begun]
    run.set_status(pid=os.getpid())  # as the process that it was handed to
    make_run(made, settings)
    assert run.status()["state"] == "finished" and run.status()["step"] == 5
    steps = [row["step"] for row in run.metrics()]
    assert steps == sorted(steps) and steps[-1] == 5 and min(steps) < stopped + 1
    last, saved = (load_file(run.path / name / "model.safetensors") for name in ("checkpoints/checkpoint-5", "model"))
    assert all(torch.equal(last[name], saved[name]) for name in saved)


@pytest.mark.long
@pytest.mark.parametrize("kind", KILLS)
def test_a_run_goes_on_wherever_it_is_killed(tmp_path, few_pairs, tries, kind):
    folder, rng = world(tmp_path, few_pairs), random.Random(0)
    kills = [[rng.randint(1, 150) for _ in range(rng.randint(1, 4))] for _ in range(50 if kind in USUAL else 4)]
    kills += [] if kind in USUAL else [KILLS[kind]]
    done = [task(kind, folder, kind)]
    for number, when in enumerate(kills):
        done += killed_tasks(kind, folder, when, f"killed-{number}")
    codes, said = run_script(done, timeout=3600)
    assert {-9, 0} >= set(codes), said[-3000:]
    assert all(code == 0 for each, code in zip(done, codes, strict=True) if "killed" not in each), said[-3000:]
    for number in range(len(kills)):
        assert_same(folder / kind, folder / f"killed-{number}")
    tries(codes.count(-9))


@pytest.mark.parametrize("adapters", ["false", "true"])
@pytest.mark.parametrize("kind", ["ppo", "reward"])
def test_from_every_step_a_run_goes_on_to_the_same_end(tmp_path, few_pairs, command, long, tries, kind, adapters):
    folder, steps = world(tmp_path, few_pairs), 12 if long else 4
    more = ("--max_steps", steps, "--save_steps", 1, "--save_total_limit", steps, "--use_peft", adapters)
    words = [*settings_of(kind, folder), *more, "--lora_dropout", 0.1, "--output_dir"]
    assert command(*words, folder / "whole").returncode == 0
    whole, last = Run(folder / "whole"), f"checkpoints/checkpoint-{steps}"
    for step in range(1, steps) if long else (1, steps - 1):
        again = Run(folder / f"from-{step}")
        done = command(*words, again.path, "--resume_from_checkpoint", whole.path / f"checkpoints/checkpoint-{step}")
        assert done.returncode == 0, done.stderr[-2000:]
        assert untimed(again) == [row for row in untimed(whole) if row["step"] > step]
        files = [
            path.relative_to(whole.path)
            for part in (last, "model")
            for path in whole.path.glob(f"{part}/*.safetensors")
        ]
        assert len(files) > 1
        for file in files:
            one, other = (load_file(run.path / file) for run in (whole, again))
            assert all(torch.equal(one[name], other[name]) for name in one), file
    tries(steps - 1 if long else 2)


def test_a_save_that_is_killed_at_any_file_leaves_the_old_checkpoint_or_the_new(killed):
    found = set()
    for parent in (killed / "saves").iterdir():
        folder = checkpoint.newest(parent)
        found.add(float(load_file(folder / "weights.safetensors")["w"].sum()))
        assert [path.name for path in parent.iterdir()] == ["checkpoint-2"]
    assert found == {0.0, 3.0}


# Damage --------------------------------------------------------------------------------------------------------------


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def forget(path, rng):
    """The manifest does not name the file any more."""
    manifest = path.parent / "MANIFEST.json"
    if path != manifest:
        named = json.loads(manifest.read_text())
        del named[path.name]
        manifest.write_text(json.dumps(named))
    else:
        manifest.write_text("[]")


DAMAGE = (flip, cut, forget, lambda path, rng: path.unlink(), lambda path, rng: (path.parent / "more").touch())


@pytest.mark.parametrize("kind", ["ppo", "reward"])
def test_any_damage_to_any_file_is_noticed_and_the_next_older_checkpoint_is_taken(killed, tmp_path, kind):
    whole, rng = killed / kind / "checkpoints", random.Random(0)
    for name in sorted(path.name for path in (whole / "checkpoint-5").iterdir()):
        for damage in DAMAGE:
            shutil.copytree(whole, tmp_path / "checkpoints")
            damage(tmp_path / "checkpoints" / "checkpoint-5" / name, rng)
            with pytest.warns(UserWarning, match="checkpoint-5 is damaged .* passed over"):
                assert checkpoint.newest(tmp_path / "checkpoints").name == "checkpoint-4"
            shutil.rmtree(tmp_path / "checkpoints")


def test_a_checkpoint_that_lacks_weights_and_does_not_say_so_is_refused(killed, command):
    folder = shutil.copytree(killed / "ppo", killed / "lacks") / "checkpoints" / "checkpoint-5"
    forget(folder / "model.safetensors", None)
    (folder / "model.safetensors").unlink()
    words = settings_of("ppo", killed)
    done = command(*words[:-1], folder, "--output_dir", "new")
    assert done.returncode == 2 and "is of another model" in done.stderr


# Settings ------------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_left_as_it_is_and_other_settings_are_refused(killed, command):
    before = {path: path.stat().st_mtime_ns for path in (killed / "ppo").rglob("*")}
    words = [*settings_of("ppo", killed), "--output_dir", killed / "ppo"]
    done = command(*words)
    assert done.returncode == 0 and done.stdout.startswith("Last update: score ")
    done = command(*words, "--kl_coef", "0.5")
    assert done.returncode == 2 and "kl_coef was 0.12 in" in done.stderr and "cannot become 0.5" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (killed / "ppo").rglob("*")}


@pytest.mark.parametrize("state", ["running", "interrupted"])
def test_a_run_is_gone_on_with_by_one_process_and_its_own_settings(killed, command, tmp_path, state):
    run = Run(shutil.copytree(killed / "reward", tmp_path / "run"))
    run.set_status(state=state, pid=os.getppid())  # alive for certain
    words = [*settings_of("reward", killed), "--output_dir", run.path]
    if state == "running":
        done = command(*words)
        assert done.returncode == 2 and "is still under way in another process" in done.stderr
        return
    done = command(*words, "--learning_rate", "0.1")
    assert done.returncode == 2 and "learning_rate was 0.0005 in" in done.stderr
    (killed / "more.jsonl").write_text((killed / "pairs.jsonl").read_text() * 2)
    done = command(*words, "--dataset_name", killed / "more.jsonl")
    assert done.returncode == 2 and "dataset_name was" in done.stderr
    write_json(run.path / "config.json", run.config() | {"dataset_name": str(killed / "more.jsonl")})  # as if edited
    done = command(*words, "--dataset_name", killed / "more.jsonl")
    assert done.returncode == 2 and "The data changed since" in done.stderr
    assert run.status()["state"] == "interrupted"


def test_a_new_run_goes_on_longer_but_not_otherwise(killed, command, tmp_path):
    words = [*settings_of("ppo", killed)[:-1], killed / "ppo", "--output_dir", "longer"]
    done = command(*words, "--learning_rate", "0.1")
    assert done.returncode == 2 and "learning_rate was 0.0003 in" in done.stderr
    done = command(*words, "--max_steps", 7)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["step"] for row in Run(tmp_path / "longer").metrics()] == [6, 7]


def test_the_trainer_itself_uses_the_settings_that_it_is_given(tmp_path):
    quick(tmp_path, save_strategy="steps", save_steps=2).train()
    other = quick(tmp_path, learning_rate=0.5, weight_decay=0.25, kl_coef=0.75)
    restore(other, tmp_path / "checkpoint-2")
    decayed, *_ = other.optimizer.param_groups
    assert (decayed["lr"], decayed["weight_decay"], other.kl_coef) == (0.25, 0.25, 0.75)  # half of the way is done
    other.train(tmp_path / "checkpoint-2")
    assert updates_of(other)[-1]["lr"] == pytest.approx(0.125) and updates_of(other)[-1]["objective/kl"] > 1


# When it saves -------------------------------------------------------------------------------------------------------


def test_a_training_of_the_page_saves_by_the_clock_and_keeps_nothing_of_that(killed, command, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_SAVE_SECONDS", "0")
    saved = []
    put_in_place = checkpoint._put_in_place
    monkeypatch.setattr(checkpoint, "_put_in_place", lambda aside: saved.append(aside.name) or put_in_place(aside))
    words = [*settings_of("ppo", killed), "--save_steps", 0, "--max_steps", 3, "--output_dir", "out"]
    done = command(*words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert saved == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert not (tmp_path / "out" / "checkpoints").exists()
