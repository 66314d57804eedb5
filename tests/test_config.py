"""Settings: every field explained, every wrong value answered with one sentence."""

import dataclasses

import pytest

from rlhf.config import (
    BadInput,
    BenchArguments,
    CeilingArguments,
    CompareArguments,
    DemoArguments,
    PPOArguments,
    PPOSettings,
    PreferencesConfig,
    PretrainConfig,
    PreviewArguments,
    PushArguments,
    RewardArguments,
    SweepArguments,
    build,
    field_docs,
)
from rlhf.config.checking import PositiveInt


CONFIGS = (
    RewardArguments,
    PPOSettings,
    PPOArguments,
    BenchArguments,
    CeilingArguments,
    CompareArguments,
    SweepArguments,
    DemoArguments,
    PretrainConfig,
    PreferencesConfig,
    PreviewArguments,
    PushArguments,
)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_is_explained(config):
    docs = field_docs(config)
    assert all(len(docs[field.name]) > 10 for field in dataclasses.fields(config))


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (RewardArguments, {"learning_rate": "abc"}, "learning_rate must be a number.*'abc'"),
        (RewardArguments, {"learning_rate": "nan"}, "learning_rate must be a number"),
        (RewardArguments, {"learning_rate": "-1"}, "above 0"),
        (RewardArguments, {"num_train_epochs": "0"}, "above 0"),
        (PPOArguments, {"total_episodes": "12.5"}, "whole number"),
        (PPOArguments, {"total_episodes": "1e99"}, "at most 1e9"),
        (RewardArguments, {"num_train_epochs": "1e99"}, "at most 1000"),
        (PPOArguments, {"total_episodes": "8"}, "at least per_device_train_batch_size"),
        (PPOArguments, {"num_mini_batches": "7"}, "must divide"),
        (PPOArguments, {"num_generations": "5"}, "must divide"),
        (PPOArguments, {"kl_controller": "adaptive", "kl_coef": "0"}, "above 0 to begin with"),
        (PPOArguments, {"reward_normalization": "batch"}, "one of none, reference, running"),
        (PPOArguments, {"missing_eos_penalty": "-1"}, "at least 0"),
        (BenchArguments, {"micro_batch_size": "48"}, "must divide batch_size"),
        (PPOArguments, {"kl_coeff": "0.1"}, "kl_coeff is not a setting.*kl_coef"),
        (DemoArguments, {"total_episodes": "1"}, "at least"),
        (DemoArguments, {"reward_learning_rate": "7"}, "at most 1"),
        (RewardArguments, {"seed": None}, "^seed needs a value.$"),
        (RewardArguments, {"use_peft": "perhaps"}, "use_peft must be true or false, not 'perhaps'"),
        (RewardArguments, {"dataset_name": ["a", "b"]}, "dataset_name must be text"),
        (SweepArguments, {"reward_model_path": "x", "kl_coefs": "0 inf"}, "kl_coefs must be a number.*'inf'"),
        (PretrainConfig, {"n_head": "0"}, "n_head must be at least 1, not 0"),
    ],
)
def test_wrong_values_are_named(config, values, message):
    with pytest.raises(BadInput, match=message):
        build(config, values)


def test_text_becomes_the_declared_type():
    args = build(PPOArguments, {"total_episodes": "1e3", "kl_coef": "0.1", "missing_eos_penalty": "none"})
    assert (args.total_episodes, args.kl_coef, args.missing_eos_penalty) == (1000, 0.1, None)
    args = build(RewardArguments, {"use_peft": "TRUE", "max_steps": "-1", "dataset_name": 7, "output_dir": ""})
    assert (args.use_peft, args.max_steps, args.dataset_name, args.output_dir) == (True, -1, "7", None)
    args = build(SweepArguments, {"reward_model_path": "x", "kl_coefs": [0, "0.1"], "best_of": "4 8"})
    assert (args.kl_coefs, args.best_of) == (["0", "0.1"], ["4", "8"])


def test_settings_that_a_script_makes_are_checked_too():
    with pytest.raises(BadInput, match=r"^temperature must be above 0, not -1\.$"):
        PPOArguments(temperature=-1)
    with pytest.raises(BadInput, match="seeds must be at most 100, not 101"):
        dataclasses.replace(CompareArguments(), seeds=101)


def test_settings_beside_another_librarys_are_checked_and_its_own_left_alone():
    @dataclasses.dataclass
    class Other:
        theirs: int = 0

    @dataclasses.dataclass
    class Both(PPOSettings, Other):
        ours: PositiveInt = 1

    assert Both(theirs="any", ours="2").ours == 2 and Both(theirs="any").theirs == "any"
    with pytest.raises(BadInput, match="ours must be at least 1, not 0"):
        Both(ours=0)


def test_a_demo_hands_its_settings_down(tmp_path):
    demo = build(DemoArguments, {"seed": "3", "kl_coef": "0.2", "reward_max_steps": "5"})
    assert demo.reward_arguments(tmp_path).max_steps == 5
    assert demo.ppo_arguments(tmp_path, tmp_path).kl_coef == 0.2
    assert {
        demo.reward_arguments(tmp_path).seed,
        demo.ppo_arguments(tmp_path, tmp_path).seed,
        demo.compare_arguments(tmp_path, tmp_path, tmp_path).seed,
    } == {3}
