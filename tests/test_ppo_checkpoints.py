"""Checkpoints: a run that is resumed is the run that was never interrupted, to the bit."""

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from worlds import (
    LONG_MEMORY,
    SIZE,
    AfterStep,
    Listener,
    assert_same_run,
    flat,
    quick,
    tokenizer_of,
    undecided,
    updates_of,
    weights,
)

from rlhf.config import BadInput
from rlhf.ppo import PPOConfig, PPOTrainer


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def straight(one_thread, tmp_path_factory):
    """A run of four updates that was never interrupted."""
    trainer = quick(tmp_path_factory.mktemp("straight"), **LONG_MEMORY)
    trainer.train()
    return trainer


@pytest.mark.parametrize("value_head", ["shared", "separate"])
def test_two_updates_and_two_resumed_ones_equal_four_to_the_bit(value_head, straight, tmp_path):
    settings = {**LONG_MEMORY, "value_head": value_head}
    if value_head == "separate":
        straight = quick(tmp_path / "straight", **settings)
        straight.train()
    resumed = quick(tmp_path / "resumed", **settings)
    result = resumed.train(resume_from_checkpoint=f"{straight.args.output_dir}/checkpoint-2")
    assert result.global_step == 4
    assert_same_run(straight, resumed)
    assert resumed.kl_coef == straight.kl_coef != 0.2
    assert resumed.score_stats == straight.score_stats


def test_a_stopped_run_goes_on_from_its_last_checkpoint(straight, tmp_path):
    def stop(state, control):
        control.should_training_stop = state.global_step == 2

    stopped = quick(tmp_path / "run", callbacks=[AfterStep(stop)], **LONG_MEMORY)
    assert stopped.train().global_step == 2
    assert stopped.state.global_step == 2 and len(updates_of(stopped)) == 2
    resumed = quick(tmp_path / "run", **LONG_MEMORY)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(straight, resumed)


def test_a_stopped_trainer_goes_on_itself(straight, tmp_path):
    run = quick(tmp_path / "run", **LONG_MEMORY)
    run.train()
    run.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert_same_run(straight, run)


def test_a_run_that_is_complete_has_nothing_left_to_do(tmp_path):
    trainer = quick(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    before = weights(trainer)
    assert trainer.train(resume_from_checkpoint=True).global_step == 4
    assert torch.equal(weights(trainer), before)


def test_a_resumed_stream_skips_what_was_used(tmp_path):
    class Stream:
        def __iter__(self):
            for number in range(1000):
                yield {"prompt": f"t{3 + number % 9} t{3 + number // 9 % 9}"}

    def run(folder, resume=None):
        args = PPOConfig(
            output_dir=str(folder), learning_rate=3e-3, per_device_train_batch_size=8, max_steps=4, use_cpu=True,
            response_length=3, save_strategy="steps", save_steps=2, report_to="none", disable_tqdm=True,
        )  # fmt: skip
        asked = Listener()
        trainer = PPOTrainer(undecided(), args, tokenizer_of(SIZE), asked, train_dataset=Stream())
        trainer.train(resume_from_checkpoint=resume)
        return trainer, asked.prompts

    straight, asked = run(tmp_path / "straight")
    resumed, rest = run(tmp_path / "resumed", tmp_path / "straight" / "checkpoint-2")
    assert asked == [row["prompt"] for row in itertools.islice(Stream(), 32)]
    assert rest == asked[16:]
    assert torch.equal(weights(straight), weights(resumed))
    straight.train(resume_from_checkpoint=tmp_path / "straight" / "checkpoint-2")  # the stream begins again
    assert torch.equal(weights(straight), weights(resumed))


def test_a_checkpoint_is_a_model_that_transformers_alone_can_load(tmp_path):
    trainer = quick(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    folder = tmp_path / "checkpoint-4"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(flat(loaded), flat(trainer.model))
    assert loaded.config._attn_implementation != "packed" and "packed" not in (folder / "config.json").read_text()
    assert len(AutoTokenizer.from_pretrained(folder)) == SIZE
    assert loaded.generate(torch.tensor([[1, 3]]), max_new_tokens=3, do_sample=False).shape[1] <= 5


def test_only_so_many_checkpoints_are_kept(tmp_path):
    quick(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=2).train()
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_checkpoints_that_cannot_be_gone_on_from_are_refused(tmp_path):
    quick(tmp_path, save_strategy="steps", save_steps=2).train()
    folder = tmp_path / "checkpoint-2"
    with pytest.raises(BadInput, match="not a checkpoint"):
        quick(tmp_path).train(resume_from_checkpoint=tmp_path)
    with pytest.raises(BadInput, match="another model"):
        quick(tmp_path, undecided(SIZE + 1)).train(resume_from_checkpoint=folder)
    with pytest.raises(BadInput, match="another model|other parts"):
        quick(tmp_path, value_head="separate").train(resume_from_checkpoint=folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match="damaged"):
        quick(tmp_path).train(resume_from_checkpoint=str(folder))
    path.unlink()
    with pytest.raises(BadInput, match="damaged"):
        quick(tmp_path).train(resume_from_checkpoint=folder)


def test_resuming_where_nothing_was_saved_is_refused(tmp_path):
    """Starting anew instead would cost the run that somebody thought they had."""
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(BadInput, match="checkpoint"):
            quick(folder).train(resume_from_checkpoint=True)
