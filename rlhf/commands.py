"""What each command does, in order: load and check everything, then make the run directory, then work.

Whatever a person got wrong shows before anything is written; whatever breaks later is recorded in the run's status.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from rlhf import data, evaluate, models
from rlhf.callbacks import EveryFewSteps, RunCallback
from rlhf.config import (
    EVERYDAY,
    BadInput,
    CompareArguments,
    DemoArguments,
    PPOArguments,
    PPOSettings,
    RewardArguments,
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
        run.log(
            {
                "step": run.status()["step"],
                "eval_loss": found["eval_loss"],
                "eval_accuracy": found["eval_accuracy"],
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


def compare(args: CompareArguments) -> dict:
    """Compare base and PPO model; writes `scores.csv` and `summary.json` and returns the summary."""
    if args.model_name_or_path is None:
        raise BadInput("There is nothing to compare: give --model_name_or_path, for example a PPO run's directory.")
    reward_path = args.reward_model_path or _reward_model_of(Path(args.model_name_or_path))
    prompts = {
        "test": _spread(data.load_prompts(args.dataset_name, "test"), args.num_prompts),
        "unseen": _spread(data.load_prompts(args.dataset_name, "unseen"), args.num_prompts // 2),
    }
    if len(prompts["test"]) < 2:
        raise BadInput(f"{args.dataset_name} has fewer than two test prompts; there is nothing to compare on.")
    base, tokenizer = models.load_policy(args.base_model_name_or_path)
    policy, _ = models.load_policy(args.model_name_or_path)
    reward_model, _ = models.load_reward_model(reward_path)
    run = _open(args, "compare")
    with recorded(run):
        return _compare(args, run, prompts, base, policy, reward_model, tokenizer)


def _reward_model_of(run_path: Path) -> str:
    """The reward model that a policy's run was trained against."""
    if (run_path / "reward" / "model").is_dir():
        return str(run_path)
    found = read_json(run_path / "config.json").get("reward_model_path")
    if found is None:
        raise BadInput("Which reward model should score? Give --reward_model_path.")
    return found


def _spread(prompts: list[str], count: int) -> list[str]:
    """`count` of the prompts at even distances, so that every topic has its share."""
    if len(prompts) <= count:
        return prompts
    return [prompts[index * len(prompts) // count] for index in range(count)]


def _compare(
    args: CompareArguments,
    run: Run,
    prompts: dict[str, list[str]],
    base: torch.nn.Module,
    policy: torch.nn.Module,
    reward_model: torch.nn.Module,
    tokenizer: object,
) -> dict:
    gold = gold_score if args.dataset_name == EVERYDAY else None
    total = 2 * sum(map(len, prompts.values()))
    run.start(total, "Comparison")
    rows: list[dict] = []
    with tqdm(total=total, desc="Comparison", unit=" responses") as bar:

        def progress(count: int) -> None:
            bar.update(count)
            run.progress(int(bar.n), total, f"Comparison: response {int(bar.n)} of {total}")
            if run.stop_requested():
                raise Stopped

        for split, asked in prompts.items():
            for name, model in (("base", base), ("ppo", policy)):
                if not asked:
                    continue
                answers = evaluate.answer_prompts(
                    model,
                    tokenizer,
                    asked,
                    max_new_tokens=args.response_length,
                    temperature=args.temperature,
                    seed=args.seed,
                    progress=progress,
                )
                kl = evaluate.sequence_kl(model, base, answers, args.temperature)
                scores = evaluate.score_answers(reward_model, answers)
                rows += evaluate.table(name, split, asked, answers, scores, kl, gold)
    evaluate.write_csv(run.path / "scores.csv", rows)
    summary = evaluate.summarize(rows, models.size_mb(base), models.size_mb(policy))
    write_json(run.path / "summary.json", summary)
    return summary


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
            "reward_model": results["reward"],
            **results["compare"],
            "seconds": {**seconds, "total": time.time() - started},
        }
        (run.path / "compare" / "scores.csv").rename(run.path / "scores.csv")
        write_json(run.path / "summary.json", summary)
        run.set_status(step=len(stages))
    return summary
