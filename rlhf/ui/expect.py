"""How long a run will take: from the last run of the kind on this machine, else from the example run.

Each stage took some seconds whatever its size, to load and to save, and some more per unit of work: optimizer steps of
a reward model or of DPO, episodes of PPO, answers of a comparison.
"""

from dataclasses import dataclass, replace

from rlhf import metrics
from rlhf.config import EVERYDAY, BadInput, DemoArguments, build
from rlhf.runs.directory import EXAMPLE, Run, list_runs


LOADING = 8.0
"""Seconds to load, check and save, at each training and comparison."""
REWARD_STEPS = 282
"""Optimizer steps of one pass over the embedded pairs at 32 pairs per step."""
SIZES = {
    "1": {"reward_max_steps": 50, "num_prompts": 32, "samples": 2, "ceiling_samples": 0, "seeds": 1},
    "5": {"reward_max_steps": -1, "num_prompts": 128, "samples": 2, "ceiling_samples": 16, "seeds": 1},
}
"""Presets of a demo by the minutes that they should take; the episodes are what then fits."""


@dataclass(frozen=True)
class Pace:
    """What a finished demo took, in seconds, and whether it ran here; `fixed` is of each training or comparison."""

    fixed: float
    step: float
    episode: float
    answer: float
    own: bool

    def seconds(self, args: DemoArguments) -> float:
        """Of a demo with these settings."""
        steps = args.reward_max_steps
        if steps < 1:
            steps = REWARD_STEPS * args.num_train_epochs * 32 / args.reward_batch_size
        ceiling = args.ceiling_samples * args.ceiling_prompts
        answers = 1.5 * args.num_prompts * args.samples * (1 + args.seeds) + ceiling
        fixed = self.fixed * (2 + args.seeds)
        return fixed + steps * self.step + args.total_episodes * args.seeds * self.episode + answers * self.answer


def pace() -> Pace:
    """Of the newest finished demo here with the embedded model, else of the example run."""
    own = (
        run for run in list_runs() if run.status().get("state") == "finished" and run.config().get("kind") == "demo"
    )
    for run in (*own, Run(EXAMPLE)):
        config = run.config()
        if config.get("model_name_or_path") == EVERYDAY and (measured := _measured(run, config)):
            return measured
    return Pace(fixed=LOADING, step=0.3, episode=0.014, answer=0.01, own=False)  # the example run is not there


def _measured(run: Run, config: dict) -> Pace | None:
    reward, ppo = (run.stages().get(kind) for kind in ("reward", "ppo"))
    rows = {"reward": reward.metrics() if reward else [], "ppo": ppo.metrics()}
    timed = [row for row in rows["reward"] if "loss" in row]
    speed = [row[metrics.EPISODES_PER_SECOND] for row in rows["ppo"] if row.get(metrics.EPISODES_PER_SECOND)]
    seconds = run.summary().get("seconds")
    if len(timed) < 2 or not speed or not seconds:
        return None
    step = (timed[-1]["time"] - timed[0]["time"]) / (timed[-1][metrics.STEP] - timed[0][metrics.STEP])
    episode = sum(1 / one for one in speed) / len(speed)
    seeds = config.get("seeds", 1)
    answers = 1.5 * config["num_prompts"] * config["samples"] * (1 + seeds)
    answers += config["ceiling_samples"] * config["ceiling_prompts"]
    rest = seconds["total"] - timed[-1][metrics.STEP] * step - config["total_episodes"] * seeds * episode
    # Loading and saving take some seconds each time; what is left are the comparison's answers.
    fixed = min(rest / (2 + seeds), LOADING)
    return Pace(fixed, step, episode, max(0.0, rest - fixed * (2 + seeds)) / answers, own=run.path != EXAMPLE)


def preset(minutes: str, settings: dict[str, object]) -> dict[str, object]:
    """The settings with the sizes of a preset, and as many episodes as fit: full updates, at least ten.

    Raises:
        BadInput: the settings cannot work.
    """
    settings = {**settings, **SIZES[minutes]}
    args, measured = build(DemoArguments, settings), pace()
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    room = 60 * int(minutes) - measured.seconds(replace(args, total_episodes=batch)) + batch * measured.episode
    updates = max(10, min(200, int(room / measured.episode) // batch))
    return {**settings, "total_episodes": updates * batch}


def expectation(settings: dict[str, object]) -> str:
    """How long a demo with these settings takes, in words; empty where they cannot be read."""
    try:
        args = build(DemoArguments, settings)
    except BadInput:
        return ""
    if args.model_name_or_path != EVERYDAY or args.dataset_name != EVERYDAY:
        return "How long this takes with a model or data of your own, only a first run can tell: begin small."
    measured = pace()
    told = (
        "as fast as the last run on this machine" if measured.own else "as fast as the example run, on two CPU cores"
    )
    return f"Takes {in_words(measured.seconds(args))}, if it is {told}."


def in_words(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 45:
        return "under a minute"
    if seconds < 90:
        return "about a minute"
    minutes = round(seconds / 60)
    return f"about {minutes} minutes" if minutes < 90 else f"about {round(minutes / 60)} hours"
