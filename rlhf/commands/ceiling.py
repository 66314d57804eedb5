"""How a command measures the ceiling, or uses one that is there already."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from rlhf.commands.lifecycle import Stopped
from rlhf.compare.answers import AnswerSampler
from rlhf.compare.ceiling import Ceiling, measure_ceiling
from rlhf.config import CompareArguments
from rlhf.everyday import gold_score
from rlhf.models.prompts import Prompt
from rlhf.rewards import RewardName, digests
from rlhf.runs.directory import Run
from rlhf.runs.files import write_json


SAME = (
    "dataset_name", "prompts_file", "prompt_column", "chosen_column", "rejected_column", "prompt_words",
    "as_conversations", "max_prompt_length", "response_length", "temperature", "chat_template_kwargs", "reward_label",
)  # fmt: skip
"""Settings that a ceiling depends on, beside the models."""


def evenly_spaced(rows: Sequence, count: int) -> list:
    """So many of the rows, or all if there are fewer; evenly spaced, so that every topic has its share."""
    count = min(count, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]


def write_ceiling(
    run: Run,
    model: PreTrainedModel,
    sampler: AnswerSampler,
    prompts: list[Prompt],
    *,
    samples: int,
    most: int | None = None,
    settle_kl: float = 0.0,
    has_gold: bool,
    seed: int,
) -> Ceiling:
    """Measure the ceiling of a base model on these prompts, and write it into the run as `ceiling.json`."""
    what = "The base model answers, to show the best score possible"
    run.start(0, what)
    with tqdm(desc="Ceiling", unit=" responses") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            run.progress(0, 0, f"{what}: answer {done:,} of {total:,}")
            if run.stop_requested():
                raise Stopped

        found = measure_ceiling(
            model,
            sampler,
            prompts,
            samples=samples,
            most=most,
            settle_kl=settle_kl,
            gold=gold_score if has_gold else None,
            seed=seed,
            progress=progress,
        )
    write_json(run.path / "ceiling.json", asdict(found))
    return found


def known_ceiling(runs: Sequence[Run], args: CompareArguments, reward_path: str | None) -> Ceiling | None:
    """The ceiling that one of these runs holds for the base, the rewards and the answers of a comparison."""
    for run in runs if args.ceiling_samples else ():
        content, settings = run.ceiling(), run.policy_settings()
        if (
            content
            and content["samples"] >= args.ceiling_samples
            and _folder(run.base_model(), "policy") == _folder(args.base_model_name_or_path, "policy")
            and _folder(run.reward_model_path() or "", "reward") == _folder(reward_path or "", "reward")
            and _functions(settings.get("reward_funcs")) == _functions(args.reward_funcs)
            and settings.get("reward_files", {}) == digests(args.reward_funcs)
            and all(settings.get(name, getattr(CompareArguments, name)) == getattr(args, name) for name in SAME)
        ):
            return Ceiling.read(content)
    return None


def _functions(names: list[str] | None) -> list[tuple[str, float]]:
    """Reward functions and their weights, wherever the files are."""
    return [(reward.title, reward.weight) for reward in map(RewardName.read, names or ())]


def _folder(name: str, role: str) -> Path:
    """Stands for a model: a run and the folder of its model are the same."""
    return (Run(name).model(role) or Path(name)).resolve()
