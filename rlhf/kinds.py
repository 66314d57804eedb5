"""The kinds of runs: one entry holds all that the command line, the page and the cards need to know about a kind.

To add a kind, add its settings to `rlhf/config`, a function of its name to `rlhf/commands`, and an entry here.
"""

from dataclasses import dataclass, field

from rlhf.config import (
    CeilingArguments,
    CompareArguments,
    DemoArguments,
    DPOArguments,
    LiveArguments,
    PPOArguments,
    RewardArguments,
    SweepArguments,
)


@dataclass(frozen=True)
class Kind:
    """A kind of run."""

    settings: type
    """Dataclass of its settings."""
    summary: str
    """What the command does, in a line of `python -m rlhf --help`."""
    label: str
    """Its name in the list of runs."""
    choice: str = ""
    """Its name in the form of the Train tab; empty for a kind that is not started there."""
    front: dict[str, str] = field(default_factory=dict)
    """Settings at the top of that form, with their labels; the others are under Advanced."""
    stages: tuple[str, ...] = ()
    """Kinds of the runs inside it, in order, each in a folder of that name; empty if it is a single stage."""
    trains: str = ""
    """The role of the model that it trains by itself, "reward" or "policy"; empty if it trains none."""
    needs_reward_model: bool = False
    """Whether it starts from a reward model that is already trained."""
    reads_pairs: bool = False
    """Whether it trains on preference pairs."""
    compares: bool = False
    """Whether its result is a comparison: the Scores tab shows its progress, and then its scores."""
    closing: str = ""
    """Function of `rlhf/write/tables.py` that makes the text printed at the end; empty if nothing is printed."""


KINDS = {
    "demo": Kind(
        settings=DemoArguments,
        summary="reward model, PPO and comparison in a row, in a few minutes",
        label="Reward and PPO",
        choice="Reward model, then PPO",
        front={"total_episodes": "Episodes", "kl_coef": "KL coefficient", "learning_rate": "Learning rate of PPO"},
        stages=("reward", "ppo", "compare"),
        reads_pairs=True,
        closing="demo_table",
    ),
    "reward": Kind(
        settings=RewardArguments,
        summary="train a reward model on preference pairs",
        label="Reward model",
        choice="Reward model only",
        front={"num_train_epochs": "Epochs", "learning_rate": "Learning rate"},
        trains="reward",
        reads_pairs=True,
    ),
    "ppo": Kind(
        settings=PPOArguments,
        summary="train a policy with PPO against a reward model, reward functions, or both",
        label="PPO",
        choice="PPO only",
        front={
            "advantage_estimator": "How it learns",
            "num_generations": "Answers per prompt",
            "total_episodes": "Episodes",
            "kl_coef": "KL coefficient",
            "learning_rate": "Learning rate",
        },
        trains="policy",
        needs_reward_model=True,
        closing="ppo_line",
    ),
    "dpo": Kind(
        settings=DPOArguments,
        summary="train a policy with DPO on preference pairs, without a reward model",
        label="DPO",
        choice="DPO, without a reward model",
        front={"max_steps": "Steps", "beta": "Beta", "learning_rate": "Learning rate"},
        trains="policy",
        reads_pairs=True,
    ),
    "live": Kind(
        settings=LiveArguments,
        summary="learn while people choose: reward model and PPO go on after every ten choices",
        label="Live",
        stages=("reward", "ppo"),
    ),
    "compare": Kind(
        settings=CompareArguments,
        summary="compare any number of models on the same test prompts",
        label="Comparison",
        compares=True,
        closing="comparison_table",
    ),
    "ceiling": Kind(
        settings=CeilingArguments,
        summary="the best possible score at every KL, from answers of the base model alone",
        label="Ceiling",
        needs_reward_model=True,
        closing="ceiling_table",
    ),
    "sweep": Kind(
        settings=SweepArguments,
        summary="KL sweep: PPO at several kl_coef values, to find over-optimisation",
        label="KL sweep",
        choice="KL sweep",
        front={"kl_coefs": "KL coefficients", "total_episodes": "Episodes per run", "seeds": "Seeds per coefficient"},
        needs_reward_model=True,
        compares=True,
        closing="sweep_table",
    ),
}


METHODS = {"ppo": "PPO", "dpo": "DPO", "gae": "PPO with a critic", "grpo": "GRPO", "reinforce++": "REINFORCE++"}
"""How a policy can learn, and as it is written; `Run.method` says which of them a run has used."""


def startable() -> list[str]:
    """Kinds that the page can start by themselves."""
    return [name for name, kind in KINDS.items() if kind.choice]
