"""`demo` and `sweep`: several commands in a row, in one run directory."""

import shutil
import time
from contextlib import suppress
from dataclasses import asdict

from rlhf.commands.comparison import compare
from rlhf.commands.lifecycle import Stopped, finished, open_run, recorded
from rlhf.commands.training import ppo, reward
from rlhf.compare import stats
from rlhf.config import DemoArguments, SweepArguments
from rlhf.kinds import KINDS
from rlhf.runs import checkpoint
from rlhf.runs.directory import Run
from rlhf.runs.files import write_json
from rlhf.write.card import write_card


def demo(args: DemoArguments) -> dict | None:
    """Reward model, PPO and comparison in a row, in one directory; returns the summary, or None if it was stopped.

    One that is resumed keeps the stages that are finished.
    """
    if done := finished(args, "demo"):
        return done.summary()
    run = open_run(args, "demo")
    with recorded(run):
        paths = {kind: stage.path for kind, stage in run.stages().items()}
        reward_path = paths.get("reward")  # None if the demo was given a reward model
        commands = {
            "reward": lambda: reward(args.reward_arguments(reward_path)),
            "ppo": lambda: ppo(args.ppo_arguments(reward_path, paths["ppo"])),
            "compare": lambda: compare(args.compare_arguments(reward_path, paths["ppo"], paths["compare"])),
        }
        seconds, results = run.status().get("seconds", {}), {}
        run.start(len(paths), KINDS[next(iter(paths))].label)
        for number, name in enumerate(paths):
            stage_started = time.time()
            run.set_status(phase=name, step=number, total_steps=len(paths))
            results[name] = commands[name]()
            seconds[name] = seconds.get(name, 0.0) + time.time() - stage_started
            run.set_status(seconds=seconds)
            if run.stop_requested():
                raise Stopped
        summary = {**results["compare"], "seconds": {**seconds, "total": sum(seconds.values())}}
        with suppress(FileNotFoundError):  # it has been moved already
            (paths["compare"] / "scores.csv").rename(run.path / "scores.csv")
        write_json(run.path / "summary.json", summary)
        write_card(paths["ppo"] / "model")  # again, now with the comparison
        run.set_status(step=len(paths))
        return summary
    return None  # stopped


def sweep(args: SweepArguments) -> dict | None:
    """PPO at several kl_coef values and seeds, with a comparison of all checkpoints, to find over-optimisation.

    Writes and returns `sweep.json`; returns None if the run was stopped. One that is resumed keeps the trainings
    that are finished.
    """
    if done := finished(args, "sweep"):
        return done.sweep()
    run = open_run(args, "sweep")
    with recorded(run):
        # 1. Train, and collect the checkpoints.
        seeds = range(args.seed, args.seed + args.seeds)
        trainings = [(float(kl_coef), seed) for kl_coef in args.kl_coefs for seed in seeds]
        run.start(len(trainings) + 1, "Sweep")
        checkpoints: dict[str, dict] = {}
        for number, (kl_coef, seed) in enumerate(trainings):
            name = f"kl_coef-{kl_coef:g}-seed-{seed}"
            run.set_status(step=number, message=f"PPO with kl_coef {kl_coef:g}, seed {seed}")
            # All start from the same base, so the first one measures the ceiling for all.
            settings = args.ppo_arguments(kl_coef, seed, run.path / name, 0 if number else args.ceiling_samples)
            ppo(settings)
            if run.stop_requested():
                raise Stopped
            if not number and (found := Run(run.path / name).ceiling()):
                write_json(run.path / "ceiling.json", found)
            folders = checkpoint.folders(run.path / name / "checkpoints")
            for folder in folders:
                step = checkpoint.step_of(folder)
                if step % settings.save_steps and folder != folders[-1]:  # only there to go on from
                    shutil.rmtree(folder)
                    continue
                point = {"kl_coef": kl_coef, "seed": seed, "episodes": step * args.batch_size}
                checkpoints[f"{name}-{step}"] = point | {"path": str(folder)}

        # 2. Compare all of them with the base.
        run.set_status(step=len(trainings), message="Comparison of all checkpoints")
        summary = compare(args.compare_arguments(checkpoints, run.path / "compare"))
        if summary is None:
            raise Stopped
        result = {
            "settings": asdict(args),
            **_frontier(summary["splits"]["test"], checkpoints),
            "ceiling": run.ceiling() or None,
        }
        write_json(run.path / "sweep.json", result)
        run.set_status(step=len(trainings) + 1)
        return result
    return None  # stopped


def _frontier(test: dict, checkpoints: dict[str, dict]) -> dict:
    """KL and gains of every checkpoint and of best-of-n, and the over-optimisation curve through the gold gains."""
    points = []
    for name, against in test["against_base"].items():
        points.append(
            {
                "name": name,
                **{key: value for key, value in checkpoints.get(name, {}).items() if key != "path"},
                "kl": test["models"][name]["kl"],
                "score": against["score"]["gain"],
                "gold": against["gold"]["gain"] if against["gold"] else None,
                **({"share": against["share"]} if "share" in against else {}),
            }
        )
    trained = [point for point in points if point["name"] in checkpoints and point["gold"]]
    fit = stats.fit_overoptimization(
        [point["kl"]["value"] for point in trained], [point["gold"]["value"] for point in trained]
    )
    return {"points": points, "fit": None if fit is None else asdict(fit)}
