"""The command line: a tiny run of every command, and every mistake answered with one sentence."""

import csv
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf import metrics
from rlhf.__main__ import main
from rlhf.commands import lifecycle
from rlhf.runs.directory import EXAMPLE, Run


ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.process
def test_a_tiny_demo_ends_with_everything_in_place(command, shared):
    out = shared / "demo"
    done = command(
        "demo", "--output_dir", out, "--reward_max_steps", 6, "--total_episodes", 64, "--num_prompts", 16,
        "--per_device_train_batch_size", 32, "--samples", 2, "--seed", 1, "--allow_chance_reward", "true",
        "--ceiling_samples", 16, "--ceiling_prompts", 8,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["reward_model"]) >= {
        "loss", "below_chance", "told_from_chance", "accuracy", "reliability", "ece", "rubric_agreement", "worst",
    }  # fmt: skip
    for split, prompts in (("test", 16), ("unseen", 8)):
        found = summary["splits"][split]
        assert {found["models"][name]["prompts"] for name in ("base", "ppo")} == {prompts}
        for kind in ("score", "gold"):
            gain = found["against_base"]["ppo"][kind]["gain"]
            assert gain["ci_low"] <= gain["value"] <= gain["ci_high"]
    assert set(summary["seconds"]) == {"reward", "ppo", "compare", "total"}
    rows = list(csv.DictReader((out / "scores.csv").open()))
    assert len(rows) == 2 * 2 * (16 + 8)
    cards = {part: (out / part / "model" / "README.md").read_text() for part in ("reward", "ppo")}
    assert f"Loss: {summary['reward_model']['loss']['value']:.3f} [" in cards["reward"]
    assert "| prompts, answers to each | 16, 2 | 8, 2 |" in cards["ppo"] and str(out) not in cards["ppo"]
    assert "ppo against base, paired" in done.stdout
    assert "Caution: 16 prompts are too few" in done.stdout
    statuses = [json.loads((out / part / "status.json").read_text())["state"] for part in (".", "reward", "ppo")]
    assert statuses == ["finished"] * 3
    # The page takes a run for interrupted whose status names no process.
    assert json.loads((out / "status.json").read_text())["pid"]
    samples = [json.loads(line) for line in (out / "ppo" / "samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} >= {0, 2} and len({sample["index"] for sample in samples}) == 6


@pytest.mark.process
def test_ppo_evaluates_on_held_out_prompts_as_often_as_asked(command, tmp_path):
    out = tmp_path / "ppo"
    done = command(
        "ppo", "--output_dir", out, "--reward_model_path", EXAMPLE, "--total_episodes", 48, "--eval_steps", 2,
        "--per_device_train_batch_size", 16, "--response_length", 16, "--num_sample_generations", 0,
        "--ceiling_samples", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = Run(out).metrics()
    evaluations = [row for row in rows if metrics.EVAL_SCORE in row]
    assert [(row["step"], row[metrics.EPISODE]) for row in evaluations] == [(2, 32), (3, 48)]  # and at the end
    evaluated = evaluations[0]
    assert evaluated[metrics.EVAL_GAIN_LOW] <= evaluated[metrics.EVAL_GAIN] <= evaluated[metrics.EVAL_GAIN_HIGH]
    assert evaluated[metrics.EVAL_KL] > 0 and evaluated[metrics.EVAL_BASE_SCORE] != evaluated[metrics.EVAL_SCORE]
    # The same run without evaluations: they draw nothing from the training's random numbers.
    other = tmp_path / "other"
    command(
        "ppo", "--output_dir", other, "--reward_model_path", EXAMPLE, "--total_episodes", 48,
        "--per_device_train_batch_size", 16, "--response_length", 16, "--num_sample_generations", 0,
        "--ceiling_samples", 0,
    )  # fmt: skip
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (out, other)]
    assert weights[0] == weights[1]


@pytest.mark.process
def test_ctrl_c_during_a_demo_saves_what_was_learned_and_says_where(tmp_path, few_pairs):
    command = [sys.executable, "-m", "rlhf", "demo", "--output_dir", "out", "--dataset_name", few_pairs]
    command += ["--num_train_epochs", "5"]  # so that Ctrl-C comes in time
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
    part = Run(tmp_path / "out" / "reward")
    while process.poll() is None and not part.status().get("step"):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=200)
    assert process.returncode == 0 and "Traceback" not in errors, errors[-2000:]
    assert re.fullmatch(r"Stopped\. Saved: the reward model as of step \d+ of \d+\. The run is in out\.", said.strip())
    assert Run(tmp_path / "out").status()["state"] == part.status()["state"] == "stopped"
    assert (part.path / "model" / "model.safetensors").exists()


@pytest.mark.process
def test_a_comparison_and_a_sweep_that_are_stopped_end_without_a_result(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Run, "stop_requested", lambda run: True)
    monkeypatch.setattr(lifecycle, "catch_signals", lambda run, **settings: None)  # the signals are pytest's here
    example = str(EXAMPLE)
    few = ["--num_prompts", "2", "--samples", "1", "--seeds", "1", "--ceiling_samples", "2"]
    assert main(["compare", "--models", "best-of-2", "--reward_model_path", example, *few,
                 "--output_dir", str(tmp_path / "compare")]) == 0  # fmt: skip
    assert main(["sweep", "--reward_model_path", example, "--kl_coefs", "0.1", *few, "--total_episodes", "64",
                 "--output_dir", str(tmp_path / "sweep")]) == 0  # fmt: skip
    for name in ("compare", "sweep"):
        assert Run(tmp_path / name).status()["state"] == "stopped"
    assert capfd.readouterr().out.count("The run is in ") == 2


@pytest.mark.process
def test_any_number_of_models_are_compared_with_the_base(command, shared):
    out, demo = shared / "again", shared / "demo"
    models = ("base", f"ppo={demo}", f"same={demo}", "best-of-4")
    small = ("--num_prompts", 8, "--samples", 1, "--ceiling_samples", 16)
    done = command("compare", "--models", *models, *small, "--output_dir", out)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((out / "summary.json").read_text())["splits"]["test"]
    assert list(found["models"]) == ["base", "ppo", "same", "best-of-4"]
    assert list(found["against_base"]) == ["ppo", "same", "best-of-4"]
    assert found["against_base"]["best-of-4"]["score"]["gain"]["value"] > 0
    # The ceiling that the demo's PPO measured serves here too.
    assert Run(out).ceiling() == Run(demo).ceiling() == json.loads((demo / "ppo" / "ceiling.json").read_text())
    assert found["against_base"]["best-of-4"]["share"]["gold"]["bound"] == "at least"
    assert "KL from the base model: at most 0.64 nats" in done.stdout
    by_position, kl = (found["models"]["same"][name] for name in ("kl_by_position", "kl"))
    assert sum(by_position) == pytest.approx(kl["value"], abs=1e-3)


@pytest.mark.process
def test_the_likeliest_answers_have_a_kl_at_temperature_1_and_the_scores_tab_shows_them(command, tmp_path):
    """B34."""
    small = ("--num_prompts", 4, "--samples", 1, "--ceiling_samples", 0, "--response_length", 16, "--temperature", 0)
    done = command("compare", "--models", f"ppo={EXAMPLE}", "best-of-2", *small, "--output_dir", "out")
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "out" / "summary.json").read_text() + (tmp_path / "out" / "scores.csv").read_text()
    assert "nan" not in text.lower().split(",")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["splits"]["test"]["models"]["ppo"]["kl"]["value"] > 0
    assert "nan" not in done.stdout.lower()


@pytest.mark.process
def test_a_training_is_repeated_with_other_seeds_and_every_one_is_shown(command, shared):
    out = shared / "seeds"
    (shared / "questions.txt").write_text(
        "How do I clean a pan?\n\nWhat helps against mould?\nHow do I clean a pan?\n"
    )
    done = command(
        "compare", "--models", f"ppo={shared / 'demo'}", "--seeds", 3, "--prompts_file", shared / "questions.txt",
        "--ceiling_samples", 4, "--output_dir", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert Run(out).ceiling()["prompts"] == 2  # these questions, not the demo's
    splits = json.loads((out / "summary.json").read_text())["splits"]
    found = splits["own"]
    assert list(splits) == ["own"] and list(found["models"]) == ["base", "ppo", "ppo-seed-2", "ppo-seed-3"]
    assert found["models"]["ppo"]["prompts"] == 2 and found["against_base"]["ppo"]["gold"] is None
    configs = [
        json.loads((folder / "config.json").read_text()) for folder in (shared / "demo" / "ppo", out / "ppo-seed-2")
    ]
    differing = {key for key in configs[0] if configs[0][key] != configs[1].get(key)}
    assert differing <= {"seed", "output_dir", "num_sample_generations", "ceiling_samples"} and configs[1]["seed"] == 2
    gains = [found["against_base"][name]["score"]["gain"]["value"] for name in found["seeds"]["ppo"]["models"]]
    assert len(set(gains)) == 3 and found["seeds"]["ppo"]["score"]["value"] == pytest.approx(sum(gains) / 3)
    assert "ppo trained 3 times" in done.stdout and "2 prompts are too few" in done.stdout


@pytest.mark.process
def test_a_sweep_compares_every_checkpoint_of_every_run(command, shared):
    out = shared / "sweep"
    small = ("--kl_coefs", "0", "0.1", "--total_episodes", 128, "--checkpoints", 2, "--best_of", 2)
    small += ("--num_prompts", 8, "--samples", 1, "--ceiling_samples", 16, "--ceiling_prompts", 8)
    done = command("sweep", "--reward_model_path", ROOT / "assets" / "example", "--output_dir", out, *small)
    assert done.returncode == 0, done.stderr[-2000:]
    points = json.loads((out / "sweep.json").read_text())["points"]
    trained = {(point["kl_coef"], point["episodes"]) for point in points if "kl_coef" in point}
    assert trained == {(0.0, 64), (0.0, 128), (0.1, 64), (0.1, 128)}
    assert [point["name"] for point in points if "kl_coef" not in point] == ["best-of-2"]
    assert all(point["gold"]["ci_low"] <= point["gold"]["value"] <= point["gold"]["ci_high"] for point in points)
    assert "best-of-2" in done.stdout and "share of the possible" in done.stdout
    assert json.loads((out / "sweep.json").read_text())["ceiling"] == Run(out).ceiling()
    assert len(list(out.rglob("ceiling.json"))) == 3  # of the sweep, its first run and its comparison


@pytest.mark.process
def test_the_ceiling_is_a_command_that_doubles_its_answers_until_it_stands_still(command, tmp_path):
    small = ("--num_prompts", 6, "--samples", 4, "--max_samples", 16, "--settle_kl", 9, "--response_length", 16)
    done = command("ceiling", "--reward_model_path", EXAMPLE, "--output_dir", "out", *small)
    assert done.returncode == 0, done.stderr[-2000:]
    found = Run(tmp_path / "out").ceiling()
    assert (found["prompts"], found["samples"]) == (6, 16) and found["gold"]["value"][0] == 0
    assert "from 16 base answers to each of 6 prompts" in done.stdout
    assert Run(tmp_path / "out").status()["state"] == "finished"


@pytest.mark.process
def test_the_report_says_what_the_shipped_run_holds(command, tmp_path):
    done = command("report", ROOT / "assets" / "example", "--output_file", "REPORT.md")
    assert done.returncode == 0, done.stderr[-2000:]
    for name in (
        "REPORT.md",
        "assets/report/reward.svg",
        "assets/report/ppo.svg",
        "assets/report/scores.svg",
        "assets/report/sweep.svg",
    ):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), name


@pytest.mark.process
def test_ppo_refuses_a_reward_model_that_knows_no_more_than_a_coin(command, shared, few_pairs):
    untrained = shared / "untrained"
    small = ("--dataset_name", few_pairs, "--max_steps", 1, "--learning_rate", 1e-9)
    assert command("reward", "--output_dir", untrained, *small).returncode == 0
    done = command("ppo", "--reward_model_path", untrained, "--total_episodes", 64)
    assert done.returncode == 2 and "not better than chance" in done.stderr
    assert done.stderr.count("\n") == 1
    small = ("--max_steps", 1, "--per_device_train_batch_size", 4, "--num_sample_generations", 0)
    small += ("--ceiling_samples", 0)
    allowed = ("--allow_chance_reward", "true", "--output_dir", shared / "regardless")
    assert command("ppo", "--reward_model_path", untrained, *small, *allowed).returncode == 0


@pytest.mark.process
def test_reward_training_resumes_from_its_checkpoint(command, shared, few_pairs):
    out = shared / "saved"
    small = ("--dataset_name", few_pairs, "--num_train_epochs", 1, "--max_steps", 4, "--save_steps", 2)
    small += ("--per_device_train_batch_size", 4)
    assert command("reward", "--output_dir", out, *small).returncode == 0
    checkpoint = out / "checkpoints" / "checkpoint-2"
    done = command("reward", "--output_dir", shared / "resumed", *small, "--resume_from_checkpoint", checkpoint)
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = (
        json.loads((shared / name / "summary.json").read_text())["reward_model"]["loss"]["value"]
        for name in ("saved", "resumed")
    )
    assert one == pytest.approx(other, abs=1e-6)
    for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"):
        damaged = shutil.copytree(checkpoint, shared / name / "checkpoint-2")
        content = (damaged / name).read_bytes()
        (damaged / name).write_bytes(content[: len(content) // 2])
        done = command("reward", "--output_dir", shared / "none", *small, "--resume_from_checkpoint", damaged)
        assert done.returncode == 2 and f"checkpoint-2 is damaged ({name})" in done.stderr
    assert not (shared / "none").exists()


@pytest.mark.process
def test_ppo_resumes_from_its_checkpoint(command, shared):
    small = ("--reward_model_path", shared / "demo", "--max_steps", 3, "--save_steps", 2)
    small += ("--per_device_train_batch_size", 8, "--num_sample_generations", 0, "--ceiling_samples", 0)
    assert command("ppo", "--output_dir", shared / "ppo", *small).returncode == 0
    checkpoint = shared / "ppo" / "checkpoints" / "checkpoint-2"
    assert checkpoint.is_dir()  # B33: the run stands for it
    done = command("ppo", "--output_dir", shared / "ppo2", *small, "--resume_from_checkpoint", shared / "ppo")
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = ((shared / name / "model" / "model.safetensors").read_bytes() for name in ("ppo", "ppo2"))
    assert one == other


@pytest.mark.process
def test_a_run_writes_nothing_outside_its_directory(shared, command, tmp_path):
    small = ("--max_steps", 1, "--per_device_train_batch_size", 4, "--num_sample_generations", 0)
    small += ("--ceiling_samples", 0)
    done = command("ppo", "--reward_model_path", shared / "demo", "--output_dir", "out", *small)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.process
def test_the_benchmark_of_a_comparison_prints_how_much_batches_gain(command):
    done = command(
        "bench", "compare", "--rounds", 1, "--batch_size", 4, "--micro_batch_size", 4, "--response_length", 6
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "4 at a time" in done.stdout and "1 at a time" in done.stdout
    assert float(done.stdout.split("ratio responses_per_second ")[1]) > 0


@pytest.mark.process
def test_the_benchmark_prints_its_medians_and_writes_its_numbers(command, tmp_path):
    small = ("--rounds", 1, "--total_episodes", 24, "--batch_size", 8, "--micro_batch_size", 8)
    done = command("bench", "ppo", *small, "--response_length", 6, "--json", "bench.json", "--use_cpu", "true")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "episodes_per_second" in done.stdout and "share_of_matmul_peak_in_update" in done.stdout
    found = json.loads((tmp_path / "bench.json").read_text())
    for name in ("ours", "ours_separate"):
        medians = found["medians"][name]
        updates = found["rounds"][name][0]["updates"]
        assert len(updates) == 3 and medians["episodes_per_second"] > 0 and medians["peak_memory"] > 1e8
        for update in updates:
            phases = sum(update[f"seconds_{phase}"] for phase in ("rollout", "score", "update"))
            assert phases == pytest.approx(update["total"], rel=0.25)
            assert -10 < update["score"] < 10 and update["score"] != update["seconds_score"]
    assert 0 < found["medians"]["ours"]["share_of_matmul_peak_in_update"] < 1


@pytest.mark.process
def test_a_yaml_file_gives_settings_and_flags_win(command, tmp_path, few_pairs):
    (tmp_path / "run.yaml").write_text("max_steps: 2\nlearning_rate: 0.001\nper_device_train_batch_size: 4\n")
    flags = ("--dataset_name", few_pairs, "--learning_rate", "0.002", "--output_dir", "out")
    done = command("reward", "--config", "run.yaml", *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["max_steps"], config["learning_rate"]) == (2, 0.002)
    assert config["versions"]["torch"]
    assert len(config["data_fingerprint"]) == len(config["model_revision"]) == 16


def pairs(path, rows):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


BASE = ROOT / "assets" / "base"
OWN = ["compare", "--models", f"a={BASE}", "--reward_model_path", str(EXAMPLE), "--prompts_file"]
PPO = ["ppo", "--reward_model_path", str(EXAMPLE), "--resume_from_checkpoint"]
GOOD = {"prompt": "How?\n", "chosen": "So.", "rejected": "No."}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reward", "--learning_rate", "abc"], "learning_rate must be a number"),
        (["reward", "--dataset_name", "nowhere.jsonl"], "There is no file nowhere.jsonl"),
        (["reward", "--dataset_name", "no-such-data"], "neither a file"),
        (["reward", "--dataset_name", "column.jsonl.gz"], "no column rejected"),
        (["reward", "--dataset_name", "empty.jsonl.gz"], "row 1 cannot (empty answer)"),
        (["reward", "--dataset_name", "broken.jsonl"], "could not be read"),
        (["reward", "--model_name_or_path", "no-such-model"], "No model could be loaded"),
        (["reward", "--config", "missing.yaml"], "There is no file missing.yaml"),
        (["ppo"], "PPO needs a reward model"),
        (["ceiling"], "A ceiling needs a reward model"),
        (["demo", "--ceiling_samples", "1"], "ceiling_samples must be 0 or at least 2"),
        (["ppo", "--reward_model_path", ROOT / "assets" / "example", "--response_length", "200"], "leaves no room"),
        (["ppo", "--reward_model_path", "everyday"], "not a reward model"),
        (["compare"], "nothing to compare"),
        (["compare", "--models", "base"], "nothing to compare"),
        (["compare", "--models", "best-of-1"], "best-of-N"),
        (["compare", "--models", "base=x"], "NAME=PATH"),
        (["compare", "--models", "a=x", "a=y"], "Two models are called a"),
        ([*OWN, "nowhere.txt"], "There is no file nowhere.txt"),
        ([*OWN, "blank.txt"], "blank.txt holds no question"),
        ([*OWN, "column.jsonl.gz", "--seeds", "2"], "assets/base is none"),
        ([*OWN, "answers.csv"], "no column prompt"),
        (["demo", "--output_dir", "taken"], "already exists"),
        (["demo", "--seed", "-1"], "seed must be at least 0"),
        (["demo", "--output_dir", "taken/file/run"], "cannot be made (Not a directory)"),
        pytest.param([*PPO, "true"], "resume_from_checkpoint true needs output_dir", id="B33-true"),
        pytest.param([*PPO, "gone/checkpoint-2"], "There is no folder gone/checkpoint-2", id="B33-missing"),
        pytest.param([*PPO, str(EXAMPLE)], "holds no checkpoint of ppo", id="B33-run-without"),
        pytest.param(["reward", PPO[-1], "taken"], "holds no checkpoint of reward", id="B33-reward"),
        pytest.param([*PPO, "cut"], "checkpoint-3 is damaged (model.safetensors)", id="B33-damaged"),
    ],
)
@pytest.mark.process
def test_mistakes_get_one_sentence_and_leave_nothing(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    pairs(tmp_path / "column.jsonl.gz", [{"prompt": "How?", "chosen": "So."}] * 3)
    pairs(tmp_path / "empty.jsonl.gz", [{**GOOD, "chosen": " "}] * 2)
    (tmp_path / "broken.jsonl").write_text('{"prompt": "How?", \n')
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "answers.csv").write_text("question,answer\nWhy?,So.\n")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    (tmp_path / "cut" / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "cut" / "checkpoints" / "checkpoint-3" / "MANIFEST.json").write_text('{"model.safetensors": "0"}')
    before = sorted(path.name for path in Path(tmp_path).iterdir())
    assert main(list(map(str, words))) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and message in said
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == before  # no half-written run
