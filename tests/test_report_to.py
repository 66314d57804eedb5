"""The curves of a run elsewhere: TensorBoard, W&B, Trackio."""

from importlib import metadata, util

import pytest

from rlhf.config import BadInput, DemoArguments, DPOArguments, PPOArguments, RewardArguments, build
from rlhf.launch import limits
from rlhf.runs.callbacks import tracker
from rlhf.runs.directory import EXAMPLE, Run


needs_tensorboard = pytest.mark.skipif(util.find_spec("tensorboard") is None, reason="pip install tensorboard")


@pytest.mark.parametrize("config", [RewardArguments, DPOArguments, PPOArguments, DemoArguments])
@pytest.mark.parametrize("package", ["trackio", "wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_one_sentence(monkeypatch, config, package):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", version)
        with pytest.raises(BadInput) as caught:
            build(config, {"report_to": package})
        assert str(caught.value) == (
            f"report_to {package} needs a package that is not installed: pip install {package}"
        )
        assert build(config, {"report_to": "none"}).report_to is build(config, {}).report_to is None
    with pytest.raises(BadInput, match="report_to must be one of trackio, wandb, tensorboard"):
        build(config, {"report_to": "mlflow"})


@pytest.mark.skipif(util.find_spec("wandb") is not None, reason="wandb is installed here")
def test_nothing_is_begun_for_a_tracker_that_is_missing(command, tmp_path):
    for kind in ("reward", "demo"):
        done = command(kind, "--output_dir", "out", "--report_to", "wandb")
        assert done.returncode == 2 and done.stderr == (
            "error: report_to wandb needs a package that is not installed: pip install wandb\n"
        )
    assert not (tmp_path / "out").exists()


def test_a_space_sends_no_numbers_elsewhere(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/lab")
    limits.check({"report_to": None})
    with pytest.raises(BadInput, match="report_to is not offered on this Space"):
        limits.check({"report_to": "wandb"})


def test_no_tracker_is_no_callback(tmp_path):
    with tracker(Run(tmp_path), None) as callbacks:
        assert callbacks == []


@needs_tensorboard
@pytest.mark.process
@pytest.mark.parametrize("kind", ["reward", "dpo", "ppo"])
def test_the_event_file_holds_what_the_run_logged(command, tmp_path, few_pairs, kind):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small = {
        "reward": ("--max_steps", 4, "--logging_steps", 2, "--per_device_train_batch_size", 4),
        "dpo": ("--max_steps", 4, "--logging_steps", 2, "--per_device_train_batch_size", 4),
        "ppo": (
            "--reward_model_path", EXAMPLE / "reward", "--total_episodes", 32, "--per_device_train_batch_size", 16,
            "--response_length", 8, "--ceiling_samples", 0, "--num_sample_generations", 0,
        ),
    }  # fmt: skip
    done = command(
        kind, "--dataset_name", few_pairs, *small[kind], "--output_dir", "out", "--report_to", "tensorboard"
    )
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "out")
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    key, tag = ("objective/scores", "train/objective/scores") if kind == "ppo" else ("loss", "train/loss")
    logged = [(row["step"], row[key]) for row in run.metrics() if key in row]
    assert len(logged) == 2
    assert [(event.step, event.value) for event in events.Scalars(tag)] == [
        (step, pytest.approx(value, rel=1e-6)) for step, value in logged
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing beside the run
