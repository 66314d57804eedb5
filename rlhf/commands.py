"""What each command does, in order: load and check everything, then make the run directory, then work.

Whatever a person got wrong shows before anything is written; whatever breaks later is recorded in the run's status.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_callback import PrinterCallback

from rlhf import comparison, data, evaluate, models, ranks, stats
from rlhf.callbacks import EveryFewSteps, RunCallback
from rlhf.card import write_card
from rlhf.config import (
    EVERYDAY,
    BadInput,
    CompareArguments,
    DemoArguments,
    PPOArguments,
    PPOSettings,
    RewardArguments,
    SweepArguments,
)
from rlhf.everyday import gold_score
from rlhf.ppo import Diverged, PPOConfig, PPOTrainer
from rlhf.prompts import PromptReader, fitting, give_chat_template
from rlhf.runs import Run, WatchedRun, catch_signals, read_json, write_json
from rlhf.scoring import RewardModel, scores_at_last_token


class Stopped(Exception):  # noqa: N818  (a wish, not an error)
    """Somebody asked the run to stop."""


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Record how the work inside ends in the run's status; an error of one rank is the error of all."""
    try:
        with ranks.together(Stopped, Diverged):
            yield
    except Stopped:
        run.finish("stopped", "Stopped. What was learned until then is saved.")
        if ranks.is_first() and not _is_part(run):
            tqdm.write(f"Stopped. What was learned until then is saved in {run.path}.")
    except Diverged as error:
        run.finish("diverged", str(error))
        raise BadInput(str(error)) from error
    except BadInput as error:
        run.finish("failed", str(error))
        raise
    except KeyboardInterrupt:
        run.finish("interrupted", "Interrupted before it could save.")
        raise
    except Exception as error:
        run.finish("failed", f"{type(error).__name__}: {error}")
        raise
    else:
        run.finish("finished")


def _open(args: RewardArguments | PPOArguments | CompareArguments | DemoArguments, kind: str, **made_from: str) -> Run:
    """The directory of a new run; of several ranks the first makes it and alone writes there."""
    if ranks.is_first():
        run = Run.create(args.output_dir, kind, {**asdict(args), **made_from})
        ranks.from_first(run.path)
    else:
        run = WatchedRun(ranks.from_first(None))
    if not _is_part(run):
        catch_signals(run, second_ends=ranks.count() == 1)
    return run


def _is_part(run: Run) -> bool:
    """Whether a run is a stage of another, which catches the signals and speaks for all."""
    return (run.path.parent / "status.json").exists()


def reward(args: RewardArguments) -> dict:
    """Train a reward model; returns what `reward_model` in `summary.json` says, on the first rank."""
    # Takes seconds to import, and only this command needs it.
    from rlhf.reward import gold_margins, label_ceiling, report, tokenized, train_reward_model

    train, held_out = data.load_preferences(args.dataset_name)
    set_seed(args.seed)  # the score head is new
    model, tokenizer = models.load_reward_model(args.model_name_or_path, _frozen(args))
    if not scores_at_last_token(model):
        raise BadInput(
            f"{args.model_name_or_path} is an encoder, and reward training starts from a causal language model; one "
            "that judges already can be given to ppo as --reward_model_path."
        )
    adapters = models.lora(args, model, "SEQ_CLS")
    texts = (data.readable(row[side]) for row in train for side in ("prompt", "chosen", "rejected"))
    give_chat_template(tokenizer, train["prompt"])
    max_length = min(args.max_length, models.context_size(model))
    train, held_out = (tokenized(pairs, tokenizer, max_length) for pairs in (train, held_out))
    run = _open(args, "reward", model_revision=models.revision(model), data_fingerprint=data.fingerprint(texts))
    with recorded(run):
        callback = RunCallback(run, "Reward model", "step")
        if args.dataset_name == EVERYDAY:
            run.log({"step": 0, "label_ceiling": label_ceiling(gold_margins(held_out))})
        train_reward_model(model, tokenizer, args, train, held_out, run.path / "checkpoints", [callback], adapters)
        if not ranks.is_first():  # what is left is written, or read, by one
            return {}
        model.save_pretrained(run.path / "model")
        tokenizer.save_pretrained(run.path / "model")
        found = report(model, held_out, args.dataset_name)
        write_json(run.path / "summary.json", {"reward_model": found})
        write_card(run.path / "model")
        run.log(
            {
                "step": run.status()["step"],
                "eval_loss": found["loss"]["value"],
                "eval_accuracy": found["accuracy"]["value"],
                "eval_margin": found["mean_margin"],
            }
        )
        if run.stop_requested():
            raise Stopped
    return found


def ppo(args: PPOArguments) -> dict:
    """Train a policy with PPO; returns the last line of its metrics."""
    if args.reward_model_path is None:
        raise BadInput(
            "PPO needs a reward model: give --reward_model_path, for example the run directory of `reward`."
        )
    if not args.allow_chance_reward:
        _check_reward(args.reward_model_path)
    policy, tokenizer = models.load_policy(args.model_name_or_path, dtype=_frozen(args))
    reward_model, reward_tokenizer = models.load_reward_model(args.reward_model_path, trained=True)
    prompts = _prompts(args, "ppo")
    for reads in (tokenizer, reward_tokenizer):
        give_chat_template(reads, prompts)
    reader = PromptReader(tokenizer, _room(args, policy))
    prompts = fitting(prompts, reader)
    pinned = data.pinned_prompts(fitting(_prompts(args, "test"), reader))
    trainer = PPOTrainer(
        policy,
        _ppo_config(args),
        tokenizer,
        reward_model,
        reward_processing_classes=reward_tokenizer,
        train_dataset=prompts,
        value_model=_critic(args, reward_model, reward_tokenizer, tokenizer),
        peft_config=models.lora(args, policy, "CAUSAL_LM"),
    )
    trainer.remove_callback(PrinterCallback)
    fingerprint = data.fingerprint(map(data.readable, prompts))
    run = _open(args, "ppo", model_revision=models.revision(policy), data_fingerprint=fingerprint)
    with recorded(run):
        trainer.args.output_dir = str(run.path / "checkpoints")
        trainer.add_callback(RunCallback(run, "PPO", "update"))
        if args.num_sample_generations:
            every = max(1, trainer.args.num_total_batches // args.num_sample_generations)

            def sample(step: int) -> None:
                samples = trainer.generate_completions(pinned, greedy=True)
                run.log_samples(step, [{**sample, "prompt": data.readable(sample["prompt"])} for sample in samples])

            trainer.add_callback(EveryFewSteps(every, sample))
        trainer.train(args.resume_from_checkpoint)
        trainer.model = models.merged(trainer.model)
        trainer.save_model(run.path / "model")
        if ranks.is_first():
            write_card(run.path / "model")
        if run.stop_requested():
            raise Stopped
    log = trainer.state.log_history
    return log[-1] if log else {}


def _critic(
    args: PPOArguments,
    reward_model: PreTrainedModel,
    reward_tokenizer: PreTrainedTokenizerBase,
    tokenizer: PreTrainedTokenizerBase,
) -> PreTrainedModel | None:
    """A value model with adapters; None leaves the trainer to make its value head, or a value model without."""
    if not args.use_peft or args.value_head != "separate":
        return None
    begins_as_reward = scores_at_last_token(reward_model) and reward_tokenizer.get_vocab() == tokenizer.get_vocab()
    start = args.reward_model_path if begins_as_reward else args.model_name_or_path
    value_model, _ = models.load_reward_model(start, _frozen(args))
    if not begins_as_reward:
        torch.nn.init.zeros_(value_model.score.weight)
    from peft import get_peft_model

    return get_peft_model(value_model, models.lora(args, value_model, "SEQ_CLS"))


def _frozen(args: RewardArguments | PPOArguments) -> torch.dtype:
    """How weights are loaded: those that are trained in full precision, or small steps would be lost in rounding."""
    return torch.bfloat16 if args.use_peft and args.dtype == "bfloat16" else torch.float32


def _prompts(args: PPOArguments | CompareArguments, split: str) -> list:
    """Prompts of a split, from the column that the settings name, whole or their first words."""
    if args.prompt_column == "prompt" and args.prompt_words is None:
        return data.load_prompts(args.dataset_name, split)
    return data.load_beginnings(args.dataset_name, split, args.prompt_column, args.prompt_words)


def _room(args: PPOArguments | CompareArguments, policy: PreTrainedModel) -> int:
    """Tokens that a prompt may have."""
    room = models.context_size(policy) - args.response_length
    return room if args.max_prompt_length is None else min(room, args.max_prompt_length)


def _ppo_config(args: PPOArguments) -> PPOConfig:
    """The trainer's settings of a run, which makes its own directory, progress bar and samples."""
    shared = {field.name: getattr(args, field.name) for field in fields(PPOSettings)}
    return PPOConfig(
        ".",  # the run's directory is made when everything has been checked
        **shared,
        save_strategy="steps" if args.save_steps else "no",
        save_steps=args.save_steps or 500,
        save_value_model=False,
        bf16=args.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available() and args.dtype == "bfloat16",  # Transformers asks to be told so
        disable_tqdm=True,
        report_to="none",
    )


def _reward_report(path: str) -> dict | None:
    """What the run that made a reward model says of it; None for a model that no run made."""
    return read_json(Path(path) / "summary.json").get("reward_model")


def _check_reward(path: str) -> None:
    """Refuse a reward model that knows no more than a coin: PPO would only learn its noise."""
    found = _reward_report(path)
    if found and not found["told_from_chance"]:
        loss = found["loss"]
        raise BadInput(
            f"The reward model's loss on unseen pairs is {loss['value']:.3f} nats [{loss['ci_low']:.3f}, "
            f"{loss['ci_high']:.3f}], which cannot be told from guessing (0.693); train it longer or on more pairs, "
            "or set allow_chance_reward to true to go on regardless."
        )


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
    reader = PromptReader(tokenizer, _room(args, base))
    prompts = _asked(prompts, reader, args)
    judge = evaluate.Judge(RewardModel(reward_model, reward_tokenizer, reader), args.response_length, args.temperature)
    run = _open(args, "compare")
    with recorded(run):
        paths |= _train_again(run, [settings for others in repeats.values() for settings in others])
        sizes = {"base": models.size_mb(base)}

        def load(name: str) -> PreTrainedModel:
            model, _ = models.load_policy(paths[name])
            sizes[name] = models.size_mb(model)
            return model

        contenders = [evaluate.Contender("base", lambda: base)]
        for name, path, best_of in entries:
            contenders.append(evaluate.Contender(name, partial(load, name) if path else lambda: base, best_of))
            again = [settings.output_dir for settings in repeats.get(name, ())]
            contenders += [evaluate.Contender(other, partial(load, other)) for other in again]
        _write_scores(args, run, contenders, judge, prompts)
        summary = {"reward_model": _reward_report(reward_path), "size_mb": sizes, "splits": _conclude(run, repeats)}
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
    splits = comparison.summarize(comparison.read_rows(run.path / "scores.csv"), "base")
    for found in splits.values():
        found["seeds"] = {
            name: comparison.over_seeds(found["against_base"], [name, *(again.output_dir for again in others)])
            for name, others in repeats.items()
        }
    return splits


def _add_cautions(summary: dict) -> None:
    """Where a reader would be fooled, beside the numbers."""
    for found in summary["splits"].values():
        for name, against in found["against_base"].items():
            against["cautions"] = comparison.cautions(against, name, summary["reward_model"])


def _questions(args: CompareArguments, tokenizer: PreTrainedTokenizerBase) -> dict[str, list]:
    """The prompts to choose from by their split: "test" and "unseen", or "own", put as a person would in a chat."""
    if args.prompts_file is None:
        return {split: _prompts(args, split) for split in ("test", "unseen")}
    asked = data.read_questions(args.prompts_file)
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
        folder = next((part for part in (Path(path) / "ppo", Path(path)) if (part / "config.json").exists()), None)
        config = read_json(folder / "config.json") if folder else {}
        if config.get("kind") != "ppo":
            raise BadInput(f"seeds repeats the training of PPO runs, and {path} is none; give --seeds 1.")
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
    for path in map(Path, paths):
        if (path / "reward" / "model").is_dir():
            return str(path)
        found = read_json(path / "config.json").get("reward_model_path")
        if found is not None:
            return found
    raise BadInput("Which reward model should score? Give --reward_model_path.")


def _spread(prompts: list, count: int) -> list:
    """`count` of the prompts at even distances, so that every topic has its share."""
    if len(prompts) <= count:
        return prompts
    return [prompts[index * len(prompts) // count] for index in range(count)]


def _write_scores(
    args: CompareArguments,
    run: Run,
    contenders: list[evaluate.Contender],
    judge: evaluate.Judge,
    prompts: dict[str, list],
) -> None:
    """Answer, score and write `scores.csv`, with progress, a batch at a time."""
    total = args.samples * len(contenders) * sum(map(len, prompts.values()))
    run.start(total, "Comparison")
    gold = gold_score if args.dataset_name == EVERYDAY and args.prompts_file is None else None
    batches = evaluate.compare(contenders, judge, prompts, samples=args.samples, seed=args.seed, gold=gold)
    with (
        tqdm(total=total, desc="Comparison", unit=" responses") as bar,
        comparison.Writer(run.path / "scores.csv") as file,
    ):
        for rows in batches:
            file.write(rows)
            bar.update(len(rows))
            run.progress(int(bar.n), total, f"Comparison: response {int(bar.n)} of {total}")
            if run.stop_requested():
                raise Stopped


def demo(args: DemoArguments) -> dict | None:
    """Reward model, PPO and comparison in a row, in one directory; returns the whole summary."""
    run = _open(args, "demo")
    with recorded(run):
        started, seconds = time.time(), {}
        first = ("reward", "Reward model") if args.reward_model_path is None else ("ppo", "PPO")
        run.set_status(state="running", started=started, phase=first[0], message=first[1])
        stages = [
            ("reward", lambda: reward(args.reward_arguments(run.path / "reward"))),
            ("ppo", lambda: ppo(args.ppo_arguments(run.path / "reward", run.path / "ppo"))),
            (
                "compare",
                lambda: compare(args.compare_arguments(run.path / "reward", run.path / "ppo", run.path / "compare")),
            ),
        ]
        if args.reward_model_path is not None:
            del stages[0]
        results = {}
        for number, (name, stage) in enumerate(stages):
            began = time.time()
            run.set_status(phase=name, step=number, total_steps=len(stages))
            results[name] = stage()
            seconds[name] = time.time() - began
            if run.stop_requested():
                raise Stopped
        summary = {
            **results["compare"],
            "seconds": {**seconds, "total": time.time() - started},
        }
        (run.path / "compare" / "scores.csv").rename(run.path / "scores.csv")
        write_json(run.path / "summary.json", summary)
        write_card(run.path / "ppo" / "model")  # again, with the comparison
        run.set_status(step=len(stages))
        return summary
    return None  # stopped


def sweep(args: SweepArguments) -> dict | None:
    """PPO at several prices of KL and several seeds, all checkpoints compared; writes and returns `sweep.json`."""
    run = _open(args, "sweep")
    with recorded(run):
        runs = [
            (float(kl_coef), seed) for kl_coef in args.kl_coefs for seed in range(args.seed, args.seed + args.seeds)
        ]
        run.start(len(runs) + 1, "Sweep")
        points: dict[str, dict] = {}
        for number, (kl_coef, seed) in enumerate(runs):
            name = f"kl_coef-{kl_coef:g}-seed-{seed}"
            run.set_status(step=number, message=f"PPO with kl_coef {kl_coef:g}, seed {seed}")
            ppo(args.ppo_arguments(kl_coef, seed, run.path / name))
            if run.stop_requested():
                raise Stopped
            made = (run.path / name / "checkpoints").glob("checkpoint-*")
            for step, folder in sorted((int(folder.name.split("-")[1]), folder) for folder in made):
                point = {"kl_coef": kl_coef, "seed": seed, "episodes": step * args.batch_size, "path": str(folder)}
                points[f"{name}-{step}"] = point
        run.set_status(step=len(runs), message="Comparison of all checkpoints")
        summary = compare(args.compare_arguments(points, run.path / "compare"))
        if summary is None:
            raise Stopped
        found = {"settings": asdict(args), **_frontier(summary, points)}
        write_json(run.path / "sweep.json", found)
        run.set_status(step=len(runs) + 1)
        return found
    return None  # stopped


def _frontier(summary: dict, points: dict[str, dict]) -> dict:
    """What a sweep found: every checkpoint's and best-of-n's gains over KL, and the curve through the gold gains."""
    found = summary["splits"]["test"]
    entries = []
    for name, against in found["against_base"].items():
        entries.append(
            {
                "name": name,
                **{key: value for key, value in points.get(name, {}).items() if key != "path"},
                "kl": found["models"][name]["kl"],
                "score": against["score"]["gain"],
                "gold": against["gold"]["gain"] if against["gold"] else None,
            }
        )
    trained = [entry for entry in entries if entry["name"] in points and entry["gold"]]
    fit = stats.fit_overoptimization(
        [entry["kl"]["value"] for entry in trained], [entry["gold"]["value"] for entry in trained]
    )
    return {"points": entries, "fit": None if fit is None else asdict(fit)}
