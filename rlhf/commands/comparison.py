"""`compare` and `ceiling`: what models do on held-out prompts, and the most that any model could do."""

from dataclasses import asdict, fields, replace
from functools import partial
from itertools import groupby

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf import models
from rlhf.commands.ceiling import evenly_spaced, known_ceiling, write_ceiling
from rlhf.commands.judging import load_judges
from rlhf.commands.lifecycle import Stopped, finished, open_run, recorded
from rlhf.commands.training import dpo, ppo, prompt_room, reward_report, split_prompts
from rlhf.compare import answers, table
from rlhf.compare.ceiling import Ceiling
from rlhf.config import (
    EVERYDAY,
    BadInput,
    CeilingArguments,
    CompareArguments,
    DPOArguments,
    PPOArguments,
    name_of_data,
)
from rlhf.data.load import read_questions
from rlhf.data.rows import as_conversation
from rlhf.everyday import gold_score
from rlhf.kinds import KINDS
from rlhf.models.packed import use_packed_attention
from rlhf.models.prompts import Messages, Prompt, PromptReader, end_ids, fitting, give_chat_template
from rlhf.runs.directory import ANSWERED, Run
from rlhf.runs.files import read_json, write_json


KEPT_MB = 2_000
"""Models that were loaded to check them stay in memory until they answer, up to so many megabytes of them."""


def compare(args: CompareArguments) -> dict | None:
    """Compare any number of models with the base; writes `scores.csv` and `summary.json`, returns the summary.

    With them goes `ceiling.json`, measured here unless a run that takes part holds it.

    Returns None if the run was stopped.
    """
    # 1. Load and check everything before the run's directory is made.
    entries = [args.contender(entry) for entry in args.models or () if entry != "base"]
    if not entries:
        raise BadInput("There is nothing to compare: give --models, for example ppo=DIR with a PPO run's directory.")
    args = _with_reward(args, [path for _, path, _ in entries if path])
    if done := finished(args, "compare"):
        return done.summary()
    repeats = _repeats(entries, args)
    paths = {name: path for name, path, _ in entries if path} | {"base": args.base_model_name_or_path}
    base, tokenizer, room, kept = _load_and_check(args, paths)
    judges = load_judges(args)
    args = replace(args, reward_label=judges.label)  # for the run to record
    prompts = _load_prompts(args, tokenizer)
    for reads in (tokenizer, *judges.readers):
        give_chat_template(reads, next(iter(prompts.values())))
    reader = PromptReader(tokenizer, room, args.chat_template_kwargs, end_ids(base, tokenizer))
    prompts = _select_prompts(args, prompts, reader)
    sampler = answers.AnswerSampler(judges.scorer(reader), args.response_length, args.temperature)

    run = open_run(args, "compare")
    with recorded(run):
        # 2. Repeat the trainings with other seeds, if that is asked for.
        paths |= _train_repeats(run, [settings for of_model in repeats.values() for settings in of_model])

        # 3. Every model answers every prompt. Of large models, one at a time is in memory besides the base.
        answers.to_accelerator(base, *judges.models)
        sizes = {"base": models.size_mb(base)}
        has_gold = args.dataset_name == EVERYDAY and args.prompts_file is None

        def load(name: str) -> PreTrainedModel:
            model = kept.pop(name) if name in kept else models.load_policy(paths[name])[0]
            sizes[name] = models.size_mb(model)
            answers.to_accelerator(model)
            return model

        contenders = [answers.Contender("base", lambda: base)]
        for name, path, best_of in entries:
            contenders.append(answers.Contender(name, partial(load, name) if path else lambda: base, best_of))
            for settings in repeats.get(name, ()):
                contenders.append(answers.Contender(settings.output_dir, partial(load, settings.output_dir)))
        nats = _write_scores(args, run, contenders, sampler, prompts, has_gold, sizes)

        # 4. The most that any model could do.
        split = next(iter(prompts))
        holders = [run.parent(), *(Run(path) for path in paths.values())]
        ceiling = known_ceiling([holder for holder in holders if holder], args, args.reward_model_path)
        if args.ceiling_samples and ceiling is None:
            ceiling = write_ceiling(
                run,
                base,
                sampler,
                evenly_spaced(prompts[split], args.ceiling_prompts),
                samples=args.ceiling_samples,
                has_gold=has_gold,
                seed=args.seed,
            )

        # 5. Summarise what was written.
        reward = reward_report(args.reward_model_path)
        splits = _summarize(run, repeats, reward)
        for name, model, by_position in nats:
            splits[name]["models"][model]["kl_by_position"] = by_position
        if ceiling:
            write_json(run.path / "ceiling.json", asdict(ceiling))
            _add_shares(ceiling, splits[split], {name for name, _, best_of in entries if best_of > 1})
        summary = {"reward_model": reward, "size_mb": sizes, "splits": splits}
        write_json(run.path / "summary.json", summary)
        (run.path / ANSWERED).unlink()
        return summary
    return None  # stopped


def _with_reward(args: CompareArguments, paths: list[str]) -> CompareArguments:
    """The settings with the rewards that the first of these runs was trained with, unless they name some."""
    if args.reward_model_path is not None or args.reward_funcs:
        return args
    for run in map(Run, paths):
        reward_path, functions = run.reward_model_path(), run.reward_funcs()
        if reward_path is not None or functions:
            label = args.reward_label or run.policy_settings().get("reward_label")
            return replace(args, reward_model_path=reward_path, reward_label=label, reward_funcs=functions or None)
    raise BadInput("Which reward model should score? Give --reward_model_path, or --reward_funcs.")


def _repeats(
    entries: list[tuple[str, str | None, int]], args: CompareArguments
) -> dict[str, list[PPOArguments | DPOArguments]]:
    """The settings of each PPO or DPO run for `args.seeds` - 1 more trainings, with the next seeds, by its name.

    Raises:
        BadInput: one of the models is no such run, so that its settings are unknown.
    """
    repeats = {}
    for name, path, _ in entries if args.seeds > 1 else ():
        if path is None:
            continue
        kind = Run(path).policy_kind()
        if kind is None:
            raise BadInput(f"seeds repeats the training of PPO and DPO runs, and {path} is none; give --seeds 1.")
        config = Run(path).stages()[kind].config()
        known = {field.name: config[field.name] for field in fields(KINDS[kind].settings) if field.name in config}
        only_training = {"save_steps": 0, "resume_from_checkpoint": args.resume_from_checkpoint}
        if kind == "ppo":
            known["reward_funcs"] = Run(path).reward_funcs() or None
            only_training |= {"num_sample_generations": 0, "eval_steps": 0, "ceiling_samples": 0}
        settings = replace(KINDS[kind].settings(**known), **only_training)
        repeats[name] = [
            replace(settings, seed=seed, output_dir=f"{name}-seed-{seed}")
            for seed in range(config["seed"] + 1, config["seed"] + args.seeds)
        ]
    return repeats


def _load_and_check(
    args: CompareArguments, paths: dict[str, str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int, dict[str, PreTrainedModel]]:
    """Load all models, and check that their answers can be compared.

    Returns:
        the base and its tokenizer, the most tokens that a prompt may have for all of them, and by name those models
        that are small enough to keep until their turn comes.

    Raises:
        BadInput: a model cannot be loaded, or has another vocabulary than the base.
    """
    base, tokenizer = models.load_policy(paths["base"])
    use_packed_attention(base)
    room, kept, left = prompt_room(args, base), {}, KEPT_MB
    outputs = base.get_output_embeddings().weight.size(0)
    for name, path in paths.items():
        if name == "base":
            continue
        model, its_tokenizer = models.load_policy(path)
        use_packed_attention(model)
        if its_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise BadInput(f"{name} has another vocabulary than the base; compare it with the model it came from.")
        its_outputs = model.get_output_embeddings().weight.size(0)
        if its_outputs != outputs:
            raise BadInput(
                f"{name} chooses among {its_outputs:,} tokens and the base among {outputs:,}, so there is no KL "
                "between them; give both as many by resize_token_embeddings, and save them again."
            )
        room = min(room, prompt_room(args, model))
        if models.size_mb(model) <= left:
            kept[name] = model
            left -= models.size_mb(model)
    return base, tokenizer, room, kept


def _load_prompts(args: CompareArguments, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str | Messages]]:
    """Splits "test" and "unseen" of the data set, or "own" from a file: as conversations for a chat model."""
    if args.prompts_file is None:
        return {split: split_prompts(args, split) for split in ("test", "unseen")}
    questions = read_questions(args.prompts_file)
    if tokenizer.chat_template:
        return {"own": list(map(as_conversation, questions))}
    return {"own": questions}


def _select_prompts(
    args: CompareArguments, prompts: dict[str, list[str | Messages]], reader: PromptReader
) -> dict[str, list[Prompt]]:
    """As many as the settings ask for of the prompts that leave room for an answer, in splits of at least two.

    Raises:
        BadInput: fewer than two test prompts are left.
    """
    counts = {"test": args.num_prompts, "unseen": args.num_prompts // 2}
    selected = {}
    for split, of_split in prompts.items():
        fits = fitting(of_split, reader)
        chosen = evenly_spaced(fits, counts.get(split, len(fits)))
        if len(chosen) > 1:
            selected[split] = chosen
    if not selected.keys() & {"test", "own"}:
        source = args.prompts_file or name_of_data(args.dataset_name)
        raise BadInput(f"{source} has fewer than two test prompts that leave room for an answer; compare on others.")
    return selected


def _train_repeats(run: Run, repeats: list[PPOArguments | DPOArguments]) -> dict[str, str]:
    """Train with each of the settings, in the folder of the run that its output_dir names; name -> folder."""
    paths = {}
    if repeats:
        run.start(len(repeats), "Repeating the training with other seeds")
    for number, settings in enumerate(repeats):
        run.set_status(step=number, message=f"Training with seed {settings.seed}")
        paths[settings.output_dir] = str(run.path / settings.output_dir)
        train = dpo if isinstance(settings, DPOArguments) else ppo
        train(replace(settings, output_dir=paths[settings.output_dir]))
        if run.stop_requested():
            raise Stopped
    return paths


def _write_scores(
    args: CompareArguments,
    run: Run,
    contenders: list[answers.Contender],
    sampler: answers.AnswerSampler,
    prompts: dict[str, list[Prompt]],
    has_gold: bool,
    sizes: dict[str, float],
) -> list[tuple[str, str, list[float]]]:
    """Sample and score all answers, and write `scores.csv` batch by batch.

    A comparison that is resumed keeps the answers of the models that were done, and their `sizes` in MB.

    Returns:
        (split, model, KL at each position of the responses in nats), for trained models: the mean over all responses,
        where one that has ended counts as 0, so that the positions add up to the KL per response.
    """
    per_model = args.samples * sum(map(len, prompts.values()))
    total = per_model * len(contenders)
    known = read_json(run.path / ANSWERED) if args.resume_from_checkpoint else {}
    nats = {split: dict(known.get("nats", {}).get(split, {})) for split in prompts}
    done, size = known.get("models", []), known.get("bytes", 0)
    sizes |= known.get("size_mb", {})
    run.start(total, "Comparison", per_model * len(done))
    gold = gold_score if has_gold else None
    batches = answers.compare(contenders, sampler, prompts, samples=args.samples, seed=args.seed, gold=gold, done=done)
    with (
        tqdm(total=total, initial=per_model * len(done), desc="Comparison", unit=" responses") as bar,
        table.Writer(run.path / "scores.csv", sampler.scorer.parts, size) as file,
    ):
        for name, of_model in groupby(batches, key=lambda rows: rows[0]["model"]):
            for rows in of_model:
                file.write(rows)
                for row in rows:
                    if row["model"] != "base" and row["token_kl"]:
                        summed = nats[row["split"]].setdefault(name, [0.0] * args.response_length)
                        for position, kl in enumerate(row["token_kl"]):
                            summed[position] += kl
                bar.update(len(rows))
                run.progress(int(bar.n), total, f"Comparison: response {int(bar.n)} of {total}")
                if run.stop_requested():
                    raise Stopped
            done = [*done, name]
            write_json(run.path / ANSWERED, {"models": done, "bytes": file.size(), "size_mb": sizes, "nats": nats})
    return [
        (
            split,
            name,
            [round(float(kl), 5) for kl in np.trim_zeros(np.array(summed) / args.samples / len(prompts[split]), "b")],
        )
        for split, of_models in nats.items()
        for name, summed in of_models.items()
    ]


def _add_shares(ceiling: Ceiling, of_split: dict, baselines: set[str]) -> None:
    """Say of each model which share of the largest gain at its KL it has, in `share` of its comparison."""
    for name, against in of_split["against_base"].items():
        kl = of_split["models"][name]["kl"]["value"]
        against["share"] = {
            measure: against[measure]
            and ceiling.share(measure, against[measure]["gain"], kl, at_most=name in baselines)
            for measure in ("score", "gold")
        }


def _summarize(run: Run, repeats: dict[str, list[PPOArguments | DPOArguments]], reward: dict | None) -> dict:
    """The statistics of each split, with cautions for the reader and the gains over seeds."""
    splits = table.summarize(table.read_rows(run.path / "scores.csv"), "base")
    for split in splits.values():
        against_base = split["against_base"]
        for name, against in against_base.items():
            against["cautions"] = table.cautions(against, name, reward)
        split["seeds"] = {
            name: table.over_seeds(against_base, [name, *(settings.output_dir for settings in of_model)])
            for name, of_model in repeats.items()
        }
    return splits


def ceiling(args: CeilingArguments) -> dict | None:
    """Measure the best possible score at every KL; writes `ceiling.json`, returns its content.

    Returns None if the run was stopped.
    """
    base, tokenizer = models.load_policy(args.model_name_or_path)
    use_packed_attention(base)
    judges = load_judges(args)
    args = replace(args, reward_label=judges.label)  # for the run to record
    prompts = split_prompts(args, "test")
    for reads in (tokenizer, *judges.readers):
        give_chat_template(reads, prompts)
    ends = end_ids(base, tokenizer)
    reader = PromptReader(tokenizer, prompt_room(args, base), args.chat_template_kwargs, ends)
    chosen = evenly_spaced(fitting(prompts, reader), args.num_prompts)
    if len(chosen) < 2:
        raise BadInput(
            f"{name_of_data(args.dataset_name)} has fewer than two test prompts that leave room for an answer."
        )
    scorer = judges.scorer(reader)
    run = open_run(args, "ceiling")
    with recorded(run):
        answers.to_accelerator(base, *judges.models)
        found = write_ceiling(
            run,
            base,
            answers.AnswerSampler(scorer, args.response_length, args.temperature),
            chosen,
            samples=args.samples,
            most=args.max_samples,
            settle_kl=args.settle_kl,
            has_gold=args.dataset_name == EVERYDAY,
            seed=args.seed,
        )
        return asdict(found)
    return None  # stopped
