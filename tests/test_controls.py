"""Controls: training that cannot help must show no gain, by the very commands that show one where there is something.

One comparison holds all three: PPO against the example's reward model, PPO against one that was trained on labels
dealt by a coin, and PPO with a learning rate of zero. The judge is the rubric, which no training sees.
"""

import json
import random

import pytest

from rlhf.commands import compare, ppo, reward
from rlhf.config import ASSETS, CompareArguments, PPOArguments, RewardArguments
from rlhf.data import load_preferences


EPISODES = 1024


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls")
    coin, pairs = random.Random(0), load_preferences("everyday")[0].select(range(1600))
    with (folder / "coin.jsonl").open("w") as file:
        for row in pairs:
            sides = [row["chosen"], row["rejected"]]
            coin.shuffle(sides)
            file.write(json.dumps({"prompt": row["prompt"], "chosen": sides[0], "rejected": sides[1]}) + "\n")
    reward(RewardArguments(dataset_name=str(folder / "coin.jsonl"), output_dir=str(folder / "judge")))
    trainings = {
        "real": {"reward_model_path": str(ASSETS / "example")},
        "coin": {"reward_model_path": str(folder / "judge"), "allow_chance_reward": True},
        "still": {"reward_model_path": str(ASSETS / "example"), "learning_rate": 0.0},
    }
    for name, settings in trainings.items():
        ppo(PPOArguments(**settings, total_episodes=EPISODES, num_sample_generations=0, output_dir=str(folder / name)))
    summary = compare(
        CompareArguments(
            models=[f"{name}={folder / name}" for name in trainings],
            reward_model_path=str(ASSETS / "example"),
            output_dir=str(folder / "compare"),
            num_prompts=100,
            samples=2,
        )
    )
    judged = json.loads((folder / "judge" / "summary.json").read_text())["reward_model"]
    return summary["splits"]["test"]["against_base"], judged


def test_a_reward_model_that_knows_something_gives_a_gain_in_gold(found):
    assert found[0]["real"]["gold"]["gain"]["ci_low"] > 0.03


def test_a_reward_model_on_labels_dealt_by_a_coin_gives_none(found):
    against, judged = found
    assert not judged["told_from_chance"]
    assert against["coin"]["gold"]["gain"]["ci_low"] <= 0
    assert against["coin"]["gold"]["gain"]["ci_high"] < against["real"]["gold"]["gain"]["value"]


def test_ppo_with_a_learning_rate_of_zero_gives_none(found):
    gain = found[0]["still"]["gold"]["gain"]
    assert gain["ci_low"] <= 0 <= gain["ci_high"]
    assert found[0]["still"]["score"]["gain"]["ci_low"] <= 0 <= found[0]["still"]["score"]["gain"]["ci_high"]
