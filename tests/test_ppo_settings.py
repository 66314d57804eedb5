"""The settings of PPO: their names and defaults, and those that are refused with a sentence."""

import json

import pytest
import torch
from transformers import HfArgumentParser
from worlds import quick, settings_for, updates_of, weights_after

from rlhf.config import BadInput
from rlhf.ppo import PPOConfig


pytestmark = pytest.mark.usefixtures("one_thread")


def test_other_names_of_settings_are_accepted():
    config = PPOConfig(beta=0.2, epsilon=0.3, max_completion_length=7, use_cpu=True)
    assert (config.kl_coef, config.cliprange, config.response_length) == (0.2, 0.3, 7)
    config = PPOConfig(use_cpu=True)
    assert (config.kl_coef, config.cliprange, config.response_length) == (0.05, 0.2, 53)
    assert PPOConfig(beta=0.0, use_cpu=True).kl_coef == 0.0


def test_defaults_are_those_of_trl_unless_documented(tmp_path):
    config = PPOConfig(use_cpu=True)
    assert config.learning_rate == 3e-6 and config.num_ppo_epochs == 4 and config.num_mini_batches == 1
    assert config.temperature == 0.7 and config.vf_coef == 0.1 and config.cliprange_value == 0.2
    assert config.gamma == 1.0 and config.lam == 0.95 and not config.whiten_rewards
    assert config.seed == 42 and config.per_device_train_batch_size == 8 and config.num_sample_generations == 10
    assert config.stop_token == "eos"  # TRL: None, which never ends
    config = PPOConfig(per_device_train_batch_size=8, gradient_accumulation_steps=4, num_mini_batches=2, use_cpu=True,
                       total_episodes=100)  # fmt: skip
    assert config.batch_size == config.local_batch_size == 32
    assert config.local_mini_batch_size == 16 and config.num_total_batches == 4


def test_settings_can_be_read_from_a_command_line(tmp_path):
    """As TRL's own example script does."""
    (config,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--kl_coef", "0.1", "--stop_token", "eos", "--use_cpu", "true",
         "--missing_eos_penalty", "1.0", "--num_mini_batches", "2", "--kl_controller", "adaptive"]
    )  # fmt: skip
    assert config.kl_coef == 0.1 and config.stop_token == "eos" and config.missing_eos_penalty == 1.0
    assert config.num_mini_batches == 2 and config.kl_controller == "adaptive"


def test_settings_can_be_written_down(tmp_path):
    written = json.loads(settings_for(tmp_path, beta=0.3, num_mini_batches=2).to_json_string())
    assert written["kl_coef"] == 0.3 and written["num_mini_batches"] == 2


def test_an_estimator_of_kl_that_moves_the_optimum_is_for_the_log_only(tmp_path):
    with pytest.warns(UserWarning, match="k3"):
        other = quick(tmp_path, kl_estimator="k3")
    plain = quick(tmp_path)
    assert torch.equal(weights_after(plain), weights_after(other))
    assert updates_of(other)[-1]["objective/kl"] != updates_of(plain)[-1]["objective/kl"]
    assert all(line["objective/kl"] >= -1e-6 for line in updates_of(other))


@pytest.mark.parametrize(
    "given",
    [
        {"top_k": 50}, {"top_p": 0.9}, {"generation_kwargs": {"top_k": 5}}, {"generation_kwargs": {"top_p": 0.5}},
        {"generation_kwargs": {"repetition_penalty": 1.2}}, {"generation_kwargs": {"num_beams": 2}},
        {"generation_kwargs": {"do_sample": False}}, {"generation_kwargs": {"min_p": 0.1}},
    ],
)  # fmt: skip
def test_settings_that_sample_from_another_distribution_are_refused(given):
    with pytest.raises(BadInput, match="distribution|generation_kwargs"):
        PPOConfig(use_cpu=True, **given)


def test_settings_that_change_nothing_about_sampling_are_accepted():
    neutral = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "do_sample": True}
    assert PPOConfig(use_cpu=True, generation_kwargs=neutral).generation_kwargs == neutral


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"num_mini_batches": 3, "per_device_train_batch_size": 16}, "num_mini_batches"),
        ({"num_generations": 5, "per_device_train_batch_size": 16}, "num_generations"),
        ({"missing_eos_penalty": 1.0, "stop_token": "none"}, "missing_eos_penalty"),
        ({"missing_eos_penalty": 1.0, "stop_token": None}, "missing_eos_penalty"),
        ({"mask_truncated_completions": True, "stop_token": "none"}, "mask_truncated_completions"),
        ({"stop_token": "."}, "stop_token_id"),
        ({"temperature": 0.0}, "temperature"),
        ({"cliprange": -0.1}, "cliprange"),
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"lam": 1.5}, "lam"),
        ({"num_ppo_epochs": 0}, "num_ppo_epochs"),
        ({"total_episodes": 8, "per_device_train_batch_size": 16}, "total_episodes"),
        ({"fp16": True}, "fp16"),
        ({"kl_estimator": "k2"}, "kl_estimator"),
        ({"kl_controller": "magic"}, "kl_controller"),
        ({"reward_normalization": "batch"}, "reward_normalization"),
        ({"value_head": "double"}, "value_head"),
        ({"max_completion_length": 0}, "response_length|max_completion_length"),
        ({"local_rollout_forward_batch_size": 0}, "local_rollout_forward_batch_size"),
        ({"eval_num_samples_per_prompt": 0}, "eval_num_samples_per_prompt"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_with_a_sentence(given, reason):
    with pytest.raises(BadInput, match=reason):
        PPOConfig(use_cpu=True, **given)
