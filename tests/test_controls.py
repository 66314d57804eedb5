"""Controls: training that cannot help must show no gain, by the very commands that show one where there is something.

One comparison holds two: PPO against the example's reward model, and PPO against one that was trained on labels dealt
by a coin. The judge is the rubric, which no training sees. PPO with a learning rate of zero leaves the base's weights.
"""

import json
import random

import pytest
import torch
from safetensors.torch import load_file

from rlhf.commands import compare, ppo, reward
from rlhf.config import ASSETS, CompareArguments, PPOArguments, RewardArguments
from rlhf.data import load_preferences


pytestmark = pytest.mark.process

UPDATES = {
    "total_episodes": 384, "per_device_train_batch_size": 32, "num_mini_batches": 4, "learning_rate": 4e-4,
    "kl_coef": 0.05, "advantage_estimator": "gae", "num_generations": 1,
}  # fmt: skip
"""For so short a run: more steps, and a lower price of moving away."""


@pytest.fixture(scope="module")
def controls(tmp_path_factory):
    """The folder of all runs, and how each policy compares with the base model."""
    folder = tmp_path_factory.mktemp("controls")
    coin, pairs = random.Random(0), load_preferences("everyday")[0].select(range(480))
    with (folder / "coin.jsonl").open("w") as file:
        for row in pairs:
            sides = [row["chosen"], row["rejected"]]
            coin.shuffle(sides)
            file.write(json.dumps({"prompt": row["prompt"], "chosen": sides[0], "rejected": sides[1]}) + "\n")
    reward(RewardArguments(dataset_name=str(folder / "coin.jsonl"), output_dir=str(folder / "judge")))
    trainings = {
        "real": {"reward_model_path": str(ASSETS / "example")},
        "coin": {"reward_model_path": str(folder / "judge"), "allow_chance_reward": True},
        "still": {"reward_model_path": str(ASSETS / "example"), "learning_rate": 0.0, "total_episodes": 64},
    }
    for name, settings in trainings.items():
        settings = {**UPDATES, "num_sample_generations": 0, "ceiling_samples": 0, **settings}
        ppo(PPOArguments(**settings, output_dir=str(folder / name)))
    summary = compare(
        CompareArguments(
            models=[f"{name}={folder / name}" for name in ("real", "coin")],
            reward_model_path=str(ASSETS / "example"),
            output_dir=str(folder / "compare"),
            num_prompts=80,
            samples=1,
            ceiling_samples=0,
        )
    )
    return folder, summary["splits"]["test"]["against_base"]


def test_a_reward_model_that_knows_something_gives_a_gain_in_gold(controls):
    _, against_base = controls
    assert against_base["real"]["gold"]["gain"]["ci_low"] > 0.03


def test_a_reward_model_on_labels_dealt_by_a_coin_gives_none(controls):
    folder, against_base = controls
    judge = json.loads((folder / "judge" / "summary.json").read_text())["reward_model"]
    assert not judge["told_from_chance"]
    gain = against_base["coin"]["gold"]["gain"]
    assert gain["ci_low"] <= 0
    assert gain["ci_high"] < against_base["real"]["gold"]["gain"]["value"]


def test_ppo_with_a_learning_rate_of_zero_changes_nothing(controls):
    folder, _ = controls
    weights, base = (load_file(path / "model.safetensors") for path in (folder / "still" / "model", ASSETS / "base"))
    assert weights.keys() == base.keys() and all(torch.equal(weights[name], base[name]) for name in base)
