"""What the Start buttons and the API do: check what was entered, and start a run with it."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from rlhf.config import EVERYDAY, BadInput, CompareArguments, build
from rlhf.config.shared import check_room
from rlhf.kinds import KINDS, startable
from rlhf.launch import jobs, limits
from rlhf.rewards import load_functions
from rlhf.runs.directory import EXAMPLE, Run, find_run, list_runs


FILLED_IN = {
    "output_dir", "resume_from_checkpoint", "save_total_limit", "reward_model_path", "feedback", "feedback_only",
    "feedback_epochs", "feedback_prompts",
}  # fmt: skip
"""Settings that nobody enters here: a run gets a directory of its own, in which it keeps two checkpoints, its reward
model from another run, and people's choices from the Feedback tab."""
DATA = (
    "prompt_column", "chosen_column", "rejected_column", "prompt_words", "as_conversations", "chat_template_kwargs",
)  # fmt: skip
"""How a run has read its data: a comparison reads them in the same way."""
BASELINES = ("best-of-4", "best-of-16")
MOST_QUESTIONS = 500
"""A person's own; the command line takes any number."""
LONGEST_QUESTION = 2_000
"""Characters."""


def start_run(
    kind: str,
    settings: dict[str, object],
    reward_run: str | None = None,
    visitor: str = "",
    upload: Path | None = None,
) -> Run:
    """Start a run.

    Args:
        kind: "demo", "reward", "ppo", "dpo" or "sweep".
        settings: by name, as texts or typed; all others are the defaults.
        reward_run: id of the run whose reward model PPO trains against; none for reward functions alone.
        visitor: a secret of the browser that asks, see `jobs.launch`.
        upload: a file that this visitor has uploaded, to train on instead of what the settings name.

    Raises:
        BadInput: a value that cannot work or is not offered here, or too many runs are waiting.
    """
    if kind not in startable():
        raise BadInput(f"kind must be one of {', '.join(startable())}, not {kind!r}.")
    if KINDS[kind].needs_reward_model and (reward_run or not settings.get("reward_funcs")):
        settings = {**settings, "reward_model_path": _reward_path(reward_run)}
    if upload:
        settings = {**settings, "dataset_name": EVERYDAY}
    args = build(KINDS[kind].settings, settings)
    if hasattr(args, "response_length"):
        check_room(args.response_length, args.model_name_or_path, _folder(args.model_name_or_path))
    check_functions(getattr(args, "reward_funcs", None))
    return jobs.launch(kind, args, visitor=visitor, upload=upload)


def _folder(model: str) -> Path | None:
    """Where a run's policy or a model of the Hub lies, if it is here; None for other folders and for what is not."""
    if os.path.exists(model):
        return Run(model).model("policy")
    try:
        config = try_to_load_from_cache(model, "config.json")
    except HFValidationError:  # no name on the Hub either
        return None
    return Path(config).parent if isinstance(config, str) else None


def check_functions(names: list[str] | None) -> list[tuple[Callable, float]]:
    """The reward functions of these names, see `load_functions`, if the page allows them.

    Raises:
        BadInput: they cannot be loaded, or are not offered here.
    """
    limits.check({"reward_funcs": names})
    return load_functions(names)


def _reward_path(run_id: str | None) -> str:
    try:
        return str(find_run(str(run_id)).path)
    except BadInput:
        raise BadInput(
            "PPO needs a reward model: choose a finished one, or train “Reward model only” first; or give it rewards "
            "of your own."
        ) from None


def start_comparison(
    chosen: Sequence[str], questions: Sequence[str], samples: object, seeds: object, visitor: str = ""
) -> Run:
    """Start a comparison.

    Args:
        chosen: ids of runs that hold a policy, and names from BASELINES.
        questions: a person's own, at least two; none for the test questions.
        samples: answers per question, a text or a number.
        seeds: training runs per model, a text or a number.
        visitor: a secret of the browser that asks, see `jobs.launch`.

    Raises:
        BadInput: these cannot be compared, or too many runs are waiting.
    """
    questions = list(dict.fromkeys(filter(None, map(str.strip, questions))))
    if len(questions) == 1:
        raise BadInput("One question compares nothing: write two at least, better twenty or more.")
    settings = build(CompareArguments, {**_compared(chosen), "samples": samples, "seeds": seeds})
    return jobs.launch("compare", settings, questions=check_questions(questions), visitor=visitor)


def check_questions(questions: list[str]) -> list[str]:
    """The questions, if they are neither too many nor too long.

    Raises:
        BadInput: they are.
    """
    if len(questions) > MOST_QUESTIONS:
        raise BadInput(f"These are {len(questions)} questions; the page takes {MOST_QUESTIONS}, the command line any.")
    if any(len(question) > LONGEST_QUESTION for question in questions):
        raise BadInput(f"A question has more than {LONGEST_QUESTION:,} characters; put one on each line.")
    return questions


def _compared(chosen: Sequence[str]) -> dict[str, object]:
    """The settings that name what is compared, with what, and on which data.

    Raises:
        BadInput: no trained model is chosen, two came from different bases, or the reward model is gone.
    """
    chosen = list(chosen or ())
    trained, runs = [name for name in chosen if name not in BASELINES], []
    for name in trained:
        with suppress(BadInput):  # it has been removed
            runs.append(find_run(name))
    runs = [run for run in runs if run.model("policy")]
    if not runs:
        raise BadInput("Choose a trained model to compare: the scores are those of its reward model.")
    if len(runs) < len(trained):
        raise BadInput("One of these holds no trained model, or is gone; choose from the list again.")
    if len(set(chosen)) < len(chosen):
        raise BadInput("The same model is chosen twice; leave it out once.")
    bases = {run.base_model() for run in runs}
    if len(bases) > 1:
        raise BadInput("These models came from different bases, so there is nothing to measure both from.")
    base = bases.pop()
    # DPO used no reward model: runs of DPO alone are scored by the newest one that was trained from the same base.
    trained_against = [run for run in runs if run.policy_kind() != "dpo"]
    judges = trained_against or [run for run in (*list_runs(), Run(EXAMPLE)) if run.base_model() == base]
    judge = next((r for r in judges if r.reward_model_path() or trained_against and r.reward_funcs()), None)
    if judge is None and trained_against:
        raise BadInput("The reward model that this run was trained against is gone; choose another run.")
    if judge is None:
        raise BadInput("There is no reward model to score the answers yet: train “Reward model only” first.")
    names = [run.method() + (f"-{run.id.split('-')[-1]}" if len(runs) > 1 else "") for run in runs]
    read = runs[0].policy_settings()
    lengths = filter(None, (run.policy_settings().get("response_length") for run in runs))  # DPO has none
    return {
        **{name: read[name] for name in DATA if read.get(name) is not None},
        "response_length": max(lengths, default=CompareArguments.response_length),
        "models": [f"{name}={run.path}" for name, run in zip(names, runs, strict=True)]
        + [name for name in BASELINES if name in chosen],
        "base_model_name_or_path": base,
        "reward_model_path": judge.reward_model_path(),
        "reward_funcs": trained_against and judge.reward_funcs() or None,
        "dataset_name": str(read.get("dataset_name") or EVERYDAY),
    }
