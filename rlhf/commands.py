"""What each command does, in order: load and check everything, then make the run directory, then work.

Whatever a person got wrong shows before anything is written; whatever breaks later is recorded in the run's status.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from rlhf import comparison, data, evaluate, models, stats
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
from rlhf.runs import Run, catch_signals, read_json, write_json


class Stopped(Exception):  # noqa: N818  (a wish, not an error)
    """Somebody asked the run to stop."""


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Record how the work inside ends in the run's status."""
    try:
        yield
    except Stopped:
        run.finish("stopped", "Stopped. What was learned until then is saved.")
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
    run = Run.create(args.output_dir, kind, {**asdict(args), **made_from})
    if not (run.path.parent / "status.json").exists():  # a stage of a demo leaves the signals to the demo
        catch_signals(run)
    return run


def reward(args: RewardArguments) -> dict:
    """Train a reward model; returns what `reward_model` in `summary.json` says."""
    # Takes seconds to import, and only this command needs it.
    from rlhf.reward import gold_margins, label_ceiling, report, train_reward_model

    train, held_out = data.load_preferences(args.dataset_name)
    set_seed(args.seed)  # the score head is new
    model, tokenizer = models.load_reward_model(args.model_name_or_path)
    texts = (row[side] for row in train for side in ("prompt", "chosen", "rejected"))
    run = _open(args, "reward", model_revision=models.revision(model), data_fingerprint=data.fingerprint(texts))
    with recorded(run):
        callback = RunCallback(run, "Reward model", "step")
        if args.dataset_name == EVERYDAY:
            run.log({"step": 0, "label_ceiling": label_ceiling(gold_margins(held_out))})
        train_reward_model(model, tokenizer, args, train, held_out, run.path / "checkpoints", [callback])
        model.save_pretrained(run.path / "model")
        tokenizer.save_pretrained(run.path / "model")
        found = report(model, tokenizer, held_out, args.dataset_name)
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
    policy, tokenizer = models.load_policy(args.model_name_or_path)
    reward_model, reward_tokenizer = models.load_reward_model(args.reward_model_path)
    prompts = data.load_prompts(args.dataset_name, "ppo")
    trainer = PPOTrainer(
        policy,
        _ppo_config(args),
        tokenizer,
        reward_model,
        reward_processing_classes=reward_tokenizer,
        train_dataset=prompts,
    )
    trainer.remove_callback(PrinterCallback)
    pinned = data.pinned_prompts(args.dataset_name)
    run = _open(args, "ppo", model_revision=models.revision(policy), data_fingerprint=data.fingerprint(prompts))
    with recorded(run):
        trainer.args.output_dir = str(run.path / "checkpoints")
        trainer.add_callback(RunCallback(run, "PPO", "update"))
        if args.num_sample_generations:
            every = max(1, trainer.args.num_total_batches // args.num_sample_generations)

            def sample(step: int) -> None:
                run.log_samples(step, trainer.generate_completions(pinned, greedy=True))

            trainer.add_callback(EveryFewSteps(every, sample))
        trainer.train(args.resume_from_checkpoint)
        trainer.save_model(run.path / "model")
        write_card(run.path / "model")
        if run.stop_requested():
            raise Stopped
    log = trainer.state.log_history
    return log[-1] if log else {}


def _ppo_config(args: PPOArguments) -> PPOConfig:
    """The trainer's settings of a run, which makes its own directory, progress bar and samples."""
    shared = {field.name: getattr(args, field.name) for field in fields(PPOSettings)}
    return PPOConfig(
        ".",  # the run's directory is made when everything has been checked
        **shared,
        save_strategy="steps" if args.save_steps else "no",
        save_steps=args.save_steps or 500,
        save_value_model=False,
        bf16=False,  # the commands load models in float32
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


def compare(args: CompareArguments) -> dict:
    """Compare any number of models with the base; writes `scores.csv` and `summary.json`, returns the summary."""
    entries = [args.contender(entry) for entry in args.models or () if entry != "base"]
    if not entries:
        raise BadInput("There is nothing to compare: give --models, for example ppo=DIR with a PPO run's directory.")
    reward_path = args.reward_model_path or _reward_model_of([path for _, path, _ in entries if path])
    prompts = {
        "test": _spread(data.load_prompts(args.dataset_name, "test"), args.num_prompts),
        "unseen": _spread(data.load_prompts(args.dataset_name, "unseen"), args.num_prompts // 2),
    }
    prompts = {split: asked for split, asked in prompts.items() if len(asked) > 1}
    if "test" not in prompts:
        raise BadInput(f"{args.dataset_name} has fewer than two test prompts; there is nothing to compare on.")
    sizes: dict[str, float] = {}
    paths = {"base": args.base_model_name_or_path, **{name: path for name, path, _ in entries if path}}
    tokenizers = {name: models.load_tokenizer(models.resolve(path, "policy")) for name, path in paths.items()}
    for name, other in tokenizers.items():
        if other.get_vocab() != tokenizers["base"].get_vocab():
            raise BadInput(f"{name} has another vocabulary than the base; compare it with the model it came from.")

    def load(name: str) -> torch.nn.Module:
        model, _ = models.load_policy(paths[name])
        sizes[name] = models.size_mb(model)
        return model

    contenders = [evaluate.Contender("base", partial(load, "base"))]
    contenders += [
        evaluate.Contender(name, partial(load, name if path else "base"), best_of) for name, path, best_of in entries
    ]
    reward_model, _ = models.load_reward_model(reward_path)
    judge = evaluate.Judge(tokenizers["base"], reward_model, args.response_length, args.temperature)
    run = _open(args, "compare")
    with recorded(run):
        _write_scores(args, run, contenders, judge, prompts)
        reward_report = _reward_report(reward_path)
        splits = comparison.summarize(comparison.read_rows(run.path / "scores.csv"), "base")
        for found in splits.values():
            for name, against in found["against_base"].items():
                against["cautions"] = comparison.cautions(against, name, reward_report)
        summary = {"reward_model": reward_report, "size_mb": sizes, "splits": splits}
        write_json(run.path / "summary.json", summary)
    return summary


def _reward_model_of(paths: list[str]) -> str:
    """The reward model that the first of these runs was trained against."""
    for path in map(Path, paths):
        if (path / "reward" / "model").is_dir():
            return str(path)
        found = read_json(path / "config.json").get("reward_model_path")
        if found is not None:
            return found
    raise BadInput("Which reward model should score? Give --reward_model_path.")


def _spread(prompts: list[str], count: int) -> list[str]:
    """`count` of the prompts at even distances, so that every topic has its share."""
    if len(prompts) <= count:
        return prompts
    return [prompts[index * len(prompts) // count] for index in range(count)]


def _write_scores(
    args: CompareArguments,
    run: Run,
    contenders: list[evaluate.Contender],
    judge: evaluate.Judge,
    prompts: dict[str, list[str]],
) -> None:
    """Answer, score and write `scores.csv`, with progress, a batch at a time."""
    total = args.samples * len(contenders) * sum(map(len, prompts.values()))
    run.start(total, "Comparison")
    gold = gold_score if args.dataset_name == EVERYDAY else None
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


def demo(args: DemoArguments) -> dict:
    """Reward model, PPO and comparison in a row, in one directory; returns the whole summary."""
    run = _open(args, "demo")
    with recorded(run):
        started, seconds = time.time(), {}
        run.set_status(state="running", started=started, phase="reward", message="Reward model")
        stages = (
            ("reward", lambda: reward(args.reward_arguments(run.path / "reward"))),
            ("ppo", lambda: ppo(args.ppo_arguments(run.path / "reward", run.path / "ppo"))),
            (
                "compare",
                lambda: compare(args.compare_arguments(run.path / "reward", run.path / "ppo", run.path / "compare")),
            ),
        )
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


def sweep(args: SweepArguments) -> dict:
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
            for folder in (run.path / name / "checkpoints").glob("checkpoint-*"):
                step = int(folder.name.split("-")[1])
                point = {"kl_coef": kl_coef, "seed": seed, "episodes": step * args.batch_size, "path": str(folder)}
                points[f"{name}-{step}"] = point
        run.set_status(step=len(runs), message="Comparison of all checkpoints")
        summary = compare(args.compare_arguments(points, run.path / "compare"))
        found = {"settings": asdict(args), **_frontier(summary, points)}
        write_json(run.path / "sweep.json", found)
        run.set_status(step=len(runs) + 1)
    return found


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
