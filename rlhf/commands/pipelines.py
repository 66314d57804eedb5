"""`demo` and `sweep`: several commands in a row, in one run directory."""

import time
from dataclasses import asdict

from rlhf.commands.comparison import compare
from rlhf.commands.lifecycle import Stopped, open_run, recorded
from rlhf.commands.training import ppo, reward
from rlhf.compare import stats
from rlhf.config import DemoArguments, SweepArguments
from rlhf.runs.directory import write_json
from rlhf.write.card import write_card


def demo(args: DemoArguments) -> dict | None:
    """Reward model, PPO and comparison in a row, in one directory; returns the whole summary."""
    run = open_run(args, "demo")
    with recorded(run):
        started, seconds = time.time(), {}
        first = ("reward", "Reward model") if args.reward_model_path is None else ("ppo", "PPO")
        run.set_status(state="running", started=started, phase=first[0], message=first[1])
        paths = {kind: stage.path for kind, stage in run.stages().items()}
        reward_path = paths.get("reward")  # None if the demo was given a reward model
        commands = {
            "reward": lambda: reward(args.reward_arguments(reward_path)),
            "ppo": lambda: ppo(args.ppo_arguments(reward_path, paths["ppo"])),
            "compare": lambda: compare(args.compare_arguments(reward_path, paths["ppo"], paths["compare"])),
        }
        results = {}
        for number, name in enumerate(paths):
            began = time.time()
            run.set_status(phase=name, step=number, total_steps=len(paths))
            results[name] = commands[name]()
            seconds[name] = time.time() - began
            if run.stop_requested():
                raise Stopped
        summary = {
            **results["compare"],
            "seconds": {**seconds, "total": time.time() - started},
        }
        (paths["compare"] / "scores.csv").rename(run.path / "scores.csv")
        write_json(run.path / "summary.json", summary)
        write_card(paths["ppo"] / "model")  # again, with the comparison
        run.set_status(step=len(paths))
        return summary
    return None  # stopped


def sweep(args: SweepArguments) -> dict | None:
    """PPO at several prices of KL and several seeds, all checkpoints compared; writes and returns `sweep.json`."""
    run = open_run(args, "sweep")
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
