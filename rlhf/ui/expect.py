"""How long a run will take: from the last run of the kind on this machine, else from the example run.

Each stage took some seconds whatever its size, to load and to save, and some more per unit of work. Of a demo each
stage is measured by itself: optimizer steps, episodes of PPO, answers of the comparison. A run of another kind takes
longer than the last one as far as it has more to do.
"""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from rlhf import metrics
from rlhf.config import EVERYDAY, BadInput, DemoArguments, Settings, build
from rlhf.kinds import KINDS, startable
from rlhf.runs.directory import EXAMPLE, Run, list_runs
from rlhf.runs.history import rows_of
from rlhf.ui import FOREIGN


LOADING = 8.0
"""Seconds to load, check and save, at each training and comparison."""
REWARD_STEPS = 282
"""Optimizer steps of one pass over the embedded pairs at 32 pairs per step, as the example took."""
ANSWER = 0.5
"""Seconds to write and score an answer, as a share of those of an episode, from which PPO also learns."""
SIZES = {
    "1": {"reward_max_steps": 50, "num_prompts": 32, "samples": 2, "ceiling_samples": 0, "seeds": 1},
    "5": {"reward_max_steps": -1, "num_prompts": 128, "samples": 2, "ceiling_samples": 16, "seeds": 1},
}
"""Presets of a demo by the minutes that they should take; the episodes are what then fits."""


@dataclass(frozen=True)
class Pace:
    """What a finished demo took, in seconds, and whether it ran here; `fixed` is of each training or comparison."""

    fixed: float
    pair: float
    episode: float
    answer: float
    own: bool

    def seconds(self, args: DemoArguments) -> float:
        """Of a demo with these settings."""
        pairs = args.reward_max_steps * args.reward_batch_size
        if pairs < 1:
            pairs = REWARD_STEPS * 32 * args.num_train_epochs
        ceiling = args.ceiling_samples * args.ceiling_prompts
        answers = 1.5 * args.num_prompts * args.samples * (1 + args.seeds) + ceiling
        fixed = self.fixed * (2 + args.seeds)
        return fixed + pairs * self.pair + args.total_episodes * args.seeds * self.episode + answers * self.answer


def pace() -> Pace:
    """Of the newest finished demo here with the embedded model, else of the example run."""
    own = (
        run for run in list_runs() if run.status().get("state") == "finished" and run.config().get("kind") == "demo"
    )
    for run in (*own, Run(EXAMPLE)):
        config = run.config()
        with suppress(*FOREIGN):
            if config.get("model_name_or_path") == EVERYDAY and (measured := _measured(run, config)):
                return measured
    return Pace(fixed=LOADING, pair=0.01, episode=0.014, answer=0.01, own=False)  # the example run is not there


def _measured(run: Run, config: dict) -> Pace | None:
    reward, ppo = (run.stages().get(kind) for kind in ("reward", "ppo"))
    rows = {"reward": rows_of(reward) if reward else [], "ppo": rows_of(ppo)}
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
    return Pace(
        fixed,
        step / config["reward_batch_size"],
        episode,
        max(0.0, rest - fixed * (2 + seeds)) / answers,
        own=run.path != EXAMPLE,
    )


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


def expectation(settings: dict[str, object], kind: str = "demo") -> str:
    """How long a run with these settings takes, in words; empty where they cannot be read."""
    if KINDS[kind].needs_reward_model:
        settings = {**settings, "reward_model_path": EVERYDAY}  # which one makes no difference
    try:
        args = build(KINDS[kind].settings, settings)
    except BadInput:
        return ""
    expected = _expected(kind, args)
    if expected:
        seconds, own = expected
        told = "the last one on this machine" if own else "the example run, on two CPU cores"
        return f"Takes {in_words(seconds)}, if it is as fast as {told}."
    if kind == "demo":
        return "How long this takes with a model or data of your own, only a first run can tell: begin small."
    return "How long this takes is not known yet: no run of this kind with this model and data has ended here."


def seconds_to_go(run: Run) -> float | None:
    """Seconds until a run has ended that waits or is under way; None where nothing tells."""
    kind, status = run.config().get("kind"), run.status()
    if kind not in startable():  # a comparison
        return run.seconds_left()
    fields = {field.name for field in dataclasses.fields(KINDS[kind].settings)}
    expected = _expected(kind, build(KINDS[kind].settings, {k: v for k, v in run.config().items() if k in fields}))
    if expected is None:
        return run.seconds_left()
    elapsed = time.time() - status["started"] if status["state"] == "running" else 0.0
    return max(expected[0] - elapsed, run.seconds_left() or 0.0)


def _expected(kind: str, args: Settings) -> tuple[float, bool] | None:
    """Seconds that a run takes, and whether a run on this machine tells that; None where none does.

    A demo is told by the pace of its parts, another run by the last one with its model and data.
    """
    if kind == "demo":
        if args.model_name_or_path != EVERYDAY or args.dataset_name != EVERYDAY:
            return None
        measured = pace()
        return measured.seconds(args), measured.own
    settings = asdict(args)
    for run in _ended(kind):
        config, status = {**settings, **run.config()}, run.status()
        if any(config[name] != settings[name] for name in ("model_name_or_path", "dataset_name")):
            continue
        with suppress(*FOREIGN):
            pairs = _pairs(run, config)
            share = _work(kind, settings, pairs) / _work(kind, config, pairs)
            return LOADING + share * (status["ended"] - status["created"]), not run.path.is_relative_to(EXAMPLE)
    return None


def _ended(kind: str) -> Iterator[Run]:
    """Runs of a kind that have ended by themselves, also those inside others, the newest first, the example's last."""
    for run in (*list_runs(), Run(EXAMPLE), Run(EXAMPLE / "sweep")):
        stage = run.stages().get(kind)
        if stage is not None and stage.status().get("state") == "finished":
            yield stage


def _pairs(run: Run, config: dict[str, object]) -> float:
    """Pairs of one pass over the data of a run that learned from pairs; 0 where it did not say."""
    row = next((row for row in reversed(rows_of(run)) if row.get("epoch")), None)
    return row[metrics.STEP] * config["per_device_train_batch_size"] / row["epoch"] if row else 0.0


def _work(kind: str, of: dict[str, object], pairs: float) -> float:
    """What a run with these settings has to do: pairs to learn from, or answers to write and learn from."""
    if KINDS[kind].reads_pairs:
        steps = of["max_steps"]
        return steps * of["per_device_train_batch_size"] if steps > 0 else of["num_train_epochs"] * pairs
    ceiling = ANSWER * of["ceiling_samples"] * of["ceiling_prompts"]
    if kind == "ppo":
        batch = of["per_device_train_batch_size"] * of["gradient_accumulation_steps"]
        return (of["max_steps"] * batch if of["max_steps"] > 0 else of["total_episodes"]) + ceiling
    runs = len(of["kl_coefs"]) * of["seeds"]
    answers = 1.5 * of["num_prompts"] * of["samples"] * (1 + runs * of["checkpoints"] + sum(map(int, of["best_of"])))
    return runs * of["total_episodes"] + ceiling + ANSWER * answers


def in_words(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 45:
        return "under a minute"
    if seconds < 90:
        return "about a minute"
    minutes = round(seconds / 60)
    return f"about {minutes} minutes" if minutes < 90 else f"about {round(minutes / 60)} hours"
