"""`compare`: any number of models answer the same prompts, one reward model scores them all."""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf import models
from rlhf.commands.lifecycle import Stopped, open_run, recorded
from rlhf.commands.training import ppo, prompt_room, reward_report, split_prompts
from rlhf.compare import answers, table
from rlhf.config import EVERYDAY, BadInput, CompareArguments, PPOArguments
from rlhf.data.load import read_questions
from rlhf.everyday import gold_score
from rlhf.models.prompts import PromptReader, fitting, give_chat_template
from rlhf.models.scoring import RewardModel
from rlhf.runs.directory import Run, write_json


def compare(args: CompareArguments) -> dict | None:
    """Compare any number of models with the base; writes `scores.csv` and `summary.json`, returns the summary.

    Nothing is returned where somebody stopped it, here and below.
    """
    entries = [args.contender(entry) for entry in args.models or () if entry != "base"]
    if not entries:
        raise BadInput("There is nothing to compare: give --models, for example ppo=DIR with a PPO run's directory.")
    reward_path = args.reward_model_path or _reward_model_of([path for _, path, _ in entries if path])
    repeats = _repeats(entries, args.seeds)
    paths = {"base": args.base_model_name_or_path, **{name: path for name, path, _ in entries if path}}
    tokenizer = _shared_tokenizer(paths)
    base, _ = models.load_policy(paths["base"])
    reward_model, reward_tokenizer = models.load_reward_model(reward_path, trained=True)
    prompts = _questions(args, tokenizer)
    for reads in (tokenizer, reward_tokenizer):
        give_chat_template(reads, next(iter(prompts.values())))
    reader = PromptReader(tokenizer, prompt_room(args, base))
    prompts = _asked(prompts, reader, args)
    judge = answers.Judge(RewardModel(reward_model, reward_tokenizer, reader), args.response_length, args.temperature)
    run = open_run(args, "compare")
    with recorded(run):
        paths |= _train_again(run, [settings for others in repeats.values() for settings in others])
        sizes = {"base": models.size_mb(base)}

        def load(name: str) -> PreTrainedModel:
            model, _ = models.load_policy(paths[name])
            sizes[name] = models.size_mb(model)
            return model

        contenders = [answers.Contender("base", lambda: base)]
        for name, path, best_of in entries:
            contenders.append(answers.Contender(name, partial(load, name) if path else lambda: base, best_of))
            again = [settings.output_dir for settings in repeats.get(name, ())]
            contenders += [answers.Contender(other, partial(load, other)) for other in again]
        _write_scores(args, run, contenders, judge, prompts)
        summary = {"reward_model": reward_report(reward_path), "size_mb": sizes, "splits": _conclude(run, repeats)}
        _add_cautions(summary)
        write_json(run.path / "summary.json", summary)
        return summary
    return None  # stopped


def _shared_tokenizer(paths: dict[str, str]) -> PreTrainedTokenizerBase:
    """The base's tokenizer, whose vocabulary all models must have.

    Raises:
        BadInput: one has another.
    """
    tokenizers = {name: models.load_tokenizer(models.resolve(path, "policy")) for name, path in paths.items()}
    for name, other in tokenizers.items():
        if other.get_vocab() != tokenizers["base"].get_vocab():
            raise BadInput(f"{name} has another vocabulary than the base; compare it with the model it came from.")
    return tokenizers["base"]


def _conclude(run: Run, repeats: dict[str, list[PPOArguments]]) -> dict:
    """What the rows of `scores.csv` show, and what all trainings of one model show together."""
    splits = table.summarize(table.read_rows(run.path / "scores.csv"), "base")
    for found in splits.values():
        found["seeds"] = {
            name: table.over_seeds(found["against_base"], [name, *(again.output_dir for again in others)])
            for name, others in repeats.items()
        }
    return splits


def _add_cautions(summary: dict) -> None:
    """Where a reader would be fooled, beside the numbers."""
    for found in summary["splits"].values():
        for name, against in found["against_base"].items():
            against["cautions"] = table.cautions(against, name, summary["reward_model"])


def _questions(args: CompareArguments, tokenizer: PreTrainedTokenizerBase) -> dict[str, list]:
    """The prompts to choose from by their split: "test" and "unseen", or "own", put as a person would in a chat."""
    if args.prompts_file is None:
        return {split: split_prompts(args, split) for split in ("test", "unseen")}
    asked = read_questions(args.prompts_file)
    return {"own": [[{"role": "user", "content": text}] for text in asked] if tokenizer.chat_template else asked}


def _asked(prompts: dict[str, list], reader: PromptReader, args: CompareArguments) -> dict[str, list]:
    """The prompts of a comparison: of those that leave room for an answer, as many as it wants."""
    counts = {"test": args.num_prompts, "unseen": args.num_prompts // 2}
    fit = {split: fitting(some, reader) for split, some in prompts.items()}
    spread = {split: _spread(some, counts.get(split, len(some))) for split, some in fit.items()}
    asked = {split: some for split, some in spread.items() if len(some) > 1}
    if not asked.keys() & {"test", "own"}:
        source = args.prompts_file or args.dataset_name
        raise BadInput(f"{source} has fewer than two test prompts that leave room for an answer; compare on others.")
    return asked


def _repeats(entries: list[tuple[str, str | None, int]], seeds: int) -> dict[str, list[PPOArguments]]:
    """Of each model that is a PPO run, the settings of the same training with the next seeds.

    Raises:
        BadInput: one of the models is no PPO run, so that nothing says how to train it.
    """
    repeats = {}
    for name, path, _ in entries if seeds > 1 else ():
        if path is None:
            continue
        stage = Run(path).stages().get("ppo")
        if stage is None:
            raise BadInput(f"seeds repeats the training of PPO runs, and {path} is none; give --seeds 1.")
        config = stage.config()
        known = {field.name: config[field.name] for field in fields(PPOArguments) if field.name in config}
        settings = replace(PPOArguments(**known), num_sample_generations=0, save_steps=0, resume_from_checkpoint=None)
        repeats[name] = [
            replace(settings, seed=seed, output_dir=f"{name}-seed-{seed}")
            for seed in range(config["seed"] + 1, config["seed"] + seeds)
        ]
    return repeats


def _train_again(run: Run, trainings: list[PPOArguments]) -> dict[str, Path]:
    """Train PPO with each of the settings, in folders within the run that output_dir names; their paths by name."""
    paths = {}
    if trainings:
        run.start(len(trainings), "Training again")
    for number, settings in enumerate(trainings):
        run.set_status(step=number, message=f"PPO again, with seed {settings.seed}")
        paths[settings.output_dir] = run.path / settings.output_dir
        ppo(replace(settings, output_dir=str(run.path / settings.output_dir)))
        if run.stop_requested():
            raise Stopped
    return paths


def _reward_model_of(paths: list[str]) -> str:
    """The reward model that the first of these runs was trained against."""
    for path in paths:
        source = Run(path).reward_model_path()
        if source is not None:
            return source
    raise BadInput("Which reward model should score? Give --reward_model_path.")


def _spread(prompts: list, count: int) -> list:
    """`count` of the prompts at even distances, so that every topic has its share."""
    if len(prompts) <= count:
        return prompts
    return [prompts[index * len(prompts) // count] for index in range(count)]


def _write_scores(
    args: CompareArguments,
    run: Run,
    contenders: list[answers.Contender],
    judge: answers.Judge,
    prompts: dict[str, list],
) -> None:
    """Answer, score and write `scores.csv`, with progress, a batch at a time."""
    total = args.samples * len(contenders) * sum(map(len, prompts.values()))
    run.start(total, "Comparison")
    gold = gold_score if args.dataset_name == EVERYDAY and args.prompts_file is None else None
    batches = answers.compare(contenders, judge, prompts, samples=args.samples, seed=args.seed, gold=gold)
    with (
        tqdm(total=total, desc="Comparison", unit=" responses") as bar,
        table.Writer(run.path / "scores.csv") as file,
    ):
        for rows in batches:
            file.write(rows)
            bar.update(len(rows))
            run.progress(int(bar.n), total, f"Comparison: response {int(bar.n)} of {total}")
            if run.stop_requested():
                raise Stopped
