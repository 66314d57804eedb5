"""Settings: every field explained, every wrong value answered with one sentence."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.config import (
    BadInput,
    BenchArguments,
    CeilingArguments,
    CompareArguments,
    DemoArguments,
    DPOArguments,
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
from rlhf.runs.directory import runs_root


CONFIGS = (
    RewardArguments,
    DPOArguments,
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
        (SweepArguments, {"reward_model_path": "x", "kl_coefs": "0 inf"}, "kl_coefs must be numbers.*'inf'"),
        (PretrainConfig, {"n_head": "0"}, "n_head must be at least 1, not 0"),
    ],
)
def test_wrong_values_are_named(config, values, message):
    with pytest.raises(BadInput, match=message):
        build(config, values)


def with_reward_model(config):
    """What these settings cannot do without."""
    return {"reward_model_path": "x"} if "reward_model_path" in field_docs(config) else {}


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "1e30", ""])
@pytest.mark.parametrize(
    ("config", "name"),
    [
        *((SweepArguments, name) for name in ("samples", "seeds", "checkpoints")),
        *((config, name) for config in (PPOArguments, DemoArguments) for name in ("temperature", "response_length")),
        *((PPOArguments, name) for name in ("num_ppo_epochs", "per_device_train_batch_size")),
        *((DemoArguments, name) for name in ("reward_batch_size", "num_train_epochs", "samples", "seeds")),
        *((RewardArguments, name) for name in ("learning_rate", "num_train_epochs", "lora_r")),
        (CompareArguments, "response_length"),
        (CeilingArguments, "temperature"),
    ],
)
def test_what_cannot_be_meant_is_refused_under_its_own_name_with_the_range(config, name, text):
    with pytest.raises(BadInput, match=f"^{name} (must be (at least|at most|above|a) |needs a value)") as refused:
        build(config, {**with_reward_model(config), name: text})
    assert refused.value.field == name


@pytest.mark.parametrize(
    ("config", "name", "text", "sentence"),
    [
        (RewardArguments, "weight_decay", "-1", "weight_decay must be at least 0, not -1."),
        (RewardArguments, "max_grad_norm", "-1", "max_grad_norm must be at least 0, not -1."),
        (RewardArguments, "max_steps", "0", "max_steps must be at least 1, or -1, not '0'."),
        (DPOArguments, "max_steps", "-5", "max_steps must be at least 1, or -1, not '-5'."),
        (PPOArguments, "kl_coef", "1e9", "kl_coef must be at most 1000, not 1e+09."),
        (DemoArguments, "num_prompts", "1e9", "num_prompts must be at most 100000, not 1e+09."),
        (SweepArguments, "kl_coefs", "", "kl_coefs needs a value."),
        (SweepArguments, "kl_coefs", [""], "kl_coefs needs a value."),
        (SweepArguments, "kl_coefs", "0.1 -1", "kl_coefs must be numbers from 0 to 1000, with spaces between them, n"),
        (SweepArguments, "kl_coefs", "0.1 0.10", "kl_coefs names 0.1 twice"),
        (SweepArguments, "best_of", "4 x", "best_of must be different whole numbers from 2 to 1024, not 4 x."),
        (PPOArguments, "dataset_name", " ", "dataset_name must be a path or a name, not ' '."),
        (PPOArguments, "response_length", "128", "response_length must be at most 127: everyday reads 128 tokens"),
        (CompareArguments, "response_length", "200", "response_length must be at most 127: everyday reads 128 tokens"),
        (DemoArguments, "num_mini_batches", "7", "num_mini_batches (7) must divide the responses of an update (64"),
    ],
)
def test_a_refusal_says_which_field_it_is_about(config, name, text, sentence):
    with pytest.raises(BadInput) as refused:
        build(config, {**with_reward_model(config), name: text})
    assert str(refused.value).startswith(sentence) and refused.value.field == name


def test_a_form_says_a_refusal_under_its_own_labels():
    labels = {"num_generations": "Answers per prompt", "seed": "Seed", "gradient_accumulation_steps": "passes"}
    with pytest.raises(BadInput) as refused:
        build(PPOArguments, {"num_generations": 3})
    said = refused.value.with_labels(labels)
    assert said.startswith("“Answers per prompt” (3) must divide") and "times “passes”" in said
    assert BadInput("seed must be 1.", field="seed").with_labels(labels) == "“Seed” must be 1."
    assert BadInput("Give --num_generations, or another seed.").with_labels(labels) == (
        "Give --num_generations, or another seed."
    )


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(CONFIGS), st.data())
def test_whatever_a_yaml_file_holds_is_taken_or_refused_by_name(config, data):
    name = data.draw(st.sampled_from([field.name for field in dataclasses.fields(config)]))
    try:
        build(config, {name: data.draw(ANYTHING)})
    except BadInput as error:
        assert error.field and "\n" not in str(error)


def test_the_home_directory_is_written_as_a_tilde(monkeypatch):
    """U11: in a flag without a shell's help, in a YAML file, on the page."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    args = build(PPOArguments, {"reward_model_path": "~/r", "dataset_name": " ~/pairs.jsonl ", "output_dir": "~"})
    assert (args.reward_model_path, args.dataset_name, args.output_dir) == (
        "/home/me/r",
        "/home/me/pairs.jsonl",
        "/home/me",
    )
    assert build(PPOArguments, {"resume_from_checkpoint": "~/c"}).resume_from_checkpoint == "/home/me/c"
    compared = build(CompareArguments, {"models": "ppo=~/p best-of-4", "prompts_file": "~/q.txt"})
    assert [compared.contender(entry)[1] for entry in compared.models] == ["/home/me/p", None]
    assert compared.prompts_file == "/home/me/q.txt" and build(PreviewArguments, {"dataset_name": "a~b"})
    monkeypatch.setenv("RLHF_RUNS", "~/runs")
    assert str(runs_root()) == "/home/me/runs"


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
