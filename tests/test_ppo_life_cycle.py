"""The life cycle of a run: its steps and passes over the prompts, what callbacks hear, and what changes on the way."""

import math
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback
from worlds import PROMPTS, AfterStep, Listener, quick, updates_of, weights

from rlhf.ppo import Diverged, PPOConfig


pytestmark = pytest.mark.usefixtures("one_thread")


class Recorder(TrainerCallback):
    """Writes down which event was called at which update."""

    def __init__(self):
        self.events = []

    def names(self):
        return [name for name, _ in self.events]


for _event in (
    "on_train_begin", "on_step_begin", "on_step_end", "on_log", "on_save", "on_evaluate", "on_train_end",
):  # fmt: skip

    def _record(self, args, state, control, _event=_event, **kwargs):
        self.events.append((_event, state.global_step))

    setattr(Recorder, _event, _record)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_update_makes_all_its_optimizer_steps_also_at_the_end_of_the_prompts(accumulation, tmp_path):
    counts = [0]
    trainer = quick(
        tmp_path, train_dataset=PROMPTS * 5, per_device_train_batch_size=16 // accumulation, total_episodes=64,
        gradient_accumulation_steps=accumulation, num_ppo_epochs=3, num_mini_batches=4,
        callbacks=[AfterStep(lambda state, control: counts.append(0))],
    )  # fmt: skip

    def count(*_):
        counts[-1] += 1

    trainer.optimizer.register_step_post_hook(count)
    trainer.train()
    assert counts == [12, 12, 12, 12, 0]
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {48}
    assert trainer.state.global_step == 4 and trainer.state.epoch == pytest.approx(64 / 25)


def test_each_pass_over_the_prompts_takes_every_prompt_once(tmp_path):
    texts = [f"t{3 + i % 9} t{3 + i // 9}" for i in range(24)]
    asked = Listener()
    trainer = quick(tmp_path, reward_funcs=asked, train_dataset=texts, total_episodes=48)
    trainer.train()
    assert len(set(texts)) == 24
    assert sorted(asked.prompts[:24]) == sorted(asked.prompts[24:]) == sorted(texts)
    assert asked.prompts[:24] != texts  # in another order than they were given


def test_episodes_follow_from_the_passes_over_the_prompts(tmp_path):
    trainer = quick(tmp_path, train_dataset=PROMPTS * 10, total_episodes=None, num_train_epochs=2)
    trainer.train()
    assert trainer.state.global_step == math.ceil(100 / 16)


def test_a_callback_may_stop_the_run(tmp_path):
    def stop(state, control):
        control.should_training_stop = True

    recorder = Recorder()
    trainer = quick(tmp_path, callbacks=[AfterStep(stop), recorder])
    assert trainer.train().global_step == 1
    assert recorder.names() == ["on_train_begin", "on_step_begin", "on_step_end", "on_log", "on_train_end"]


def test_callbacks_hear_of_every_event(tmp_path):
    recorder = Recorder()
    trainer = quick(
        tmp_path, callbacks=[recorder], total_episodes=32, save_strategy="steps", save_steps=1, eval_strategy="steps",
        eval_steps=2, eval_dataset=["<bos> t4"],
    )  # fmt: skip
    trainer.train()
    assert recorder.events == [
        ("on_train_begin", 0),
        ("on_step_begin", 0), ("on_step_end", 1), ("on_log", 1), ("on_save", 1),
        ("on_step_begin", 1), ("on_step_end", 2), ("on_log", 2), ("on_log", 2), ("on_evaluate", 2), ("on_save", 2),
        ("on_train_end", 2),
    ]  # fmt: skip


def test_metrics_are_written_as_often_as_asked_for(tmp_path):
    trainer = quick(tmp_path, total_episodes=16 * 5, logging_steps=2)
    trainer.train()
    assert [line["step"] for line in updates_of(trainer)] == [2, 4]
    assert updates_of(trainer)[-1]["episode"] == 64


def test_metrics_reach_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "curves"))
    quick(tmp_path, report_to="tensorboard", total_episodes=32).train()
    files = list((tmp_path / "curves").rglob("events.out.tfevents.*"))
    assert files and any(b"objective/kl" in file.read_bytes() for file in files)


def test_passes_over_the_prompts_may_set_the_rhythm(tmp_path):
    recorder = Recorder()
    trainer = quick(
        tmp_path, train_dataset=PROMPTS[:4] * 8, callbacks=[recorder], save_strategy="epoch", eval_strategy="epoch",
        logging_strategy="epoch", eval_dataset=["<bos>"],
    )  # fmt: skip
    trainer.train()
    assert [event for event in recorder.events if event[0] in ("on_evaluate", "on_save")] == [
        ("on_evaluate", 2), ("on_save", 2), ("on_evaluate", 4), ("on_save", 4),
    ]  # fmt: skip
    assert [line["step"] for line in updates_of(trainer)] == [2, 4]


def test_without_a_price_there_is_no_reference(tmp_path):
    trainer = quick(tmp_path, kl_coef=0.0, eval_dataset=["<bos>"])
    trainer.train()
    assert trainer.ref_model is None
    for line in updates_of(trainer):
        assert "objective/kl" not in line and "objective/kl_exact" not in line
        assert line["objective/non_score_reward"] == 0
        assert line["objective/rlhf_reward"] == line["objective/scores"]
    metrics = trainer.evaluate()
    assert "eval/score" in metrics and "eval/gain" not in metrics


def test_the_adaptive_controller_follows_its_formula(tmp_path):
    trainer = quick(tmp_path, kl_controller="adaptive", kl_target=0.5, kl_horizon=64, kl_coef=0.1)
    trainer.train()
    lines = updates_of(trainer)
    expected = 0.1
    for line in lines:
        assert line["objective/kl_coef"] == pytest.approx(expected, rel=1e-9)
        expected *= 1 + max(-0.2, min(0.2, line["objective/kl"] / 0.5 - 1)) * 16 / 64
    assert trainer.kl_coef == pytest.approx(expected, rel=1e-9)
    assert lines[1]["objective/kl_coef"] == pytest.approx(0.1 * 0.95)  # the KL begins at 0, so the price falls


def test_early_stopping_ends_the_epochs(tmp_path):
    far = quick(tmp_path, num_ppo_epochs=4, early_stopping=True, target_kl=1e-5)
    far.train()
    assert all(1 <= line["policy/epochs_run"] < 4 for line in updates_of(far))
    near = quick(tmp_path, num_ppo_epochs=4, early_stopping=True, target_kl=1e3)
    near.train()
    assert all(line["policy/epochs_run"] == 4 for line in updates_of(near))
    off = quick(tmp_path, num_ppo_epochs=4, target_kl=1e-5)
    off.train()
    assert all(line["policy/epochs_run"] == 4 for line in updates_of(off))


def test_gradients_are_clipped_and_their_norm_is_logged(tmp_path):
    trainer = quick(tmp_path, max_grad_norm=0.01, num_ppo_epochs=2)
    norms = []

    def look(optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

    trainer.optimizer.register_step_pre_hook(look)
    trainer.train()
    assert len(norms) == 8 and max(norms) <= 0.01 * (1 + 1e-4)
    assert all(line["grad_norm"] > 0.01 for line in updates_of(trainer))


def test_a_gradient_that_is_not_finite_ends_the_run_and_spoils_nothing(tmp_path):
    trainer = quick(tmp_path)
    before = weights(trainer)
    trainer.model.transformer.wte.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(Diverged, match="update 1"):
        trainer.train()
    assert torch.equal(weights(trainer), before)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_recomputing_activations_calls_nothing_that_will_go_away(tmp_path):
    """P4: the setting is called by the name that this version of Transformers gives it."""
    name = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(PPOConfig, n))
    quick(tmp_path, total_episodes=16, value_head="separate", **{name: True}).train()


def test_the_parts_of_trls_wrapper_are_where_the_table_says(tmp_path):
    """P3"""
    trainer = quick(tmp_path, total_episodes=16)
    trainer.train()
    for part in ("policy", "value_model"):
        with pytest.raises(AttributeError, match=part):
            getattr(trainer.model, part)
    table = (Path(__file__).parent.parent / "rlhf" / "ppo" / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in table.splitlines() if "`trainer.model.policy`" in line)
    places = [place.strip("` ").removeprefix("trainer.") for place in row.split("|")[2].split(",")]
    assert [type(getattr(trainer, place)).__name__ for place in places] == ["GPT2LMHeadModel", "ValueHead"]
