"""The critic: a value head on the policy or a model of its own, how fast it learns, and where it is saved."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from worlds import SIZE, AfterStep, classifier, flat, quick, updates_of


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("value_head", "times"), [("shared", 10), ("separate", 1)])
def test_a_value_head_which_starts_at_zero_learns_ten_times_as_fast(value_head, times, tmp_path):
    trainer = quick(tmp_path, learning_rate=1e-3, value_head=value_head)
    groups = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert groups[id(trainer.value_model.score.weight)] == pytest.approx(1e-3 * times)


def test_the_rate_falls_to_zero_and_the_value_head_may_have_its_own(tmp_path):
    trainer = quick(tmp_path, learning_rate=4e-3, value_learning_rate=8e-3)
    groups = {id(p): group for group in trainer.optimizer.param_groups for p in group["params"]}
    assert groups[id(trainer.value_model.score.weight)]["lr"] == 8e-3
    assert groups[id(trainer.model.lm_head.weight)]["lr"] == 4e-3
    assert {group["eps"] for group in trainer.optimizer.param_groups} == {1e-5}
    trainer.train()
    assert [line["lr"] for line in updates_of(trainer)] == pytest.approx([4e-3, 3e-3, 2e-3, 1e-3])
    assert groups[id(trainer.value_model.score.weight)]["lr"] == 0


def test_the_value_head_learns_first_where_it_is_to_warm_up(tmp_path):
    seen = []
    trainer = quick(tmp_path, value_warmup_steps=2)
    trainer.add_callback(AfterStep(lambda *_: seen.append((flat(trainer.model), flat(trainer.value_model)))))
    start, head = flat(trainer.model), flat(trainer.value_model)
    trainer.train()
    assert torch.equal(seen[0][0], start) and torch.equal(seen[1][0], start)
    assert not torch.equal(seen[0][1], head) and not torch.equal(seen[1][1], seen[0][1])
    assert not torch.equal(seen[2][0], start)
    assert all(line["policy/approxkl_avg"] < 1e-9 for line in updates_of(trainer)[:2])


def test_a_separate_value_model_starts_with_the_policys_trunk_and_is_saved(tmp_path):
    trainer = quick(tmp_path / "run", value_head="separate")
    policy, values = flat(trainer.model.transformer), flat(trainer.value_model.transformer)
    assert torch.equal(policy, values)
    trainer.train()
    assert not torch.equal(flat(trainer.value_model.transformer), values)
    assert updates_of(trainer)[-1]["loss/value_avg"] > 0
    trainer.save_model(tmp_path / "saved")
    assert torch.equal(flat(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), flat(trainer.model))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "value_model")
    assert torch.equal(flat(loaded), flat(trainer.value_model))


def test_a_separate_value_model_starts_from_the_reward_model_where_there_is_one(tmp_path):
    reward = classifier()
    trainer = quick(tmp_path, reward_model=reward, value_head="separate")
    assert torch.equal(flat(trainer.value_model), flat(reward))
    before = flat(reward)
    trainer.train()
    assert torch.equal(flat(reward), before)  # the judge stays as it is
    assert not torch.equal(flat(trainer.value_model), before)


def test_a_value_model_that_is_given_is_trained_and_saved(tmp_path):
    critic = classifier(seed=5)
    before = flat(critic)
    trainer = quick(tmp_path / "run", value_model=critic)
    assert trainer.value_model is critic
    trainer.train()
    assert not torch.equal(flat(critic), before)
    trainer.save_model(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "value_model")
    assert torch.equal(flat(loaded), flat(critic))
    by_path = quick(tmp_path / "again", value_model=str(tmp_path / "saved" / "value_model"))
    assert torch.equal(flat(by_path.value_model), flat(critic))


def test_the_value_head_is_saved_beside_the_policy_unless_it_is_not_wanted(tmp_path):
    trainer = quick(tmp_path / "run")
    trainer.train()
    trainer.save_model(tmp_path / "with")
    assert (tmp_path / "with" / "value_model" / "model.safetensors").is_file()
    assert torch.equal(flat(AutoModelForCausalLM.from_pretrained(tmp_path / "with")), flat(trainer.model))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "with")) == SIZE
    trainer.args.save_value_model = False
    trainer.save_model(tmp_path / "without")
    assert not (tmp_path / "without" / "value_model").exists()
