"""The command line: `python -m rlhf COMMAND --help`. Flags are the fields of the command's config."""

import argparse
import dataclasses
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.config import (
    BadInput,
    BenchArguments,
    CompareArguments,
    DemoArguments,
    FailedElsewhere,
    PPOArguments,
    PreferencesConfig,
    PretrainConfig,
    PreviewArguments,
    PushArguments,
    RewardArguments,
    SweepArguments,
    build,
    default_of,
    field_docs,
)
from rlhf.recipes import names, read_recipe, read_settings
from rlhf.runs import Run


if TYPE_CHECKING:
    from rlhf.preview import Preview


COMMANDS = {
    "demo": (DemoArguments, "reward model, PPO and comparison in a row, in a few minutes"),
    "preview": (PreviewArguments, "look at preference pairs before training: first rows, lengths, what is left out"),
    "reward": (RewardArguments, "train a reward model on preference pairs"),
    "ppo": (PPOArguments, "train a policy with PPO against a reward model"),
    "compare": (CompareArguments, "compare any number of models on the same test prompts"),
    "sweep": (SweepArguments, "PPO at several prices of KL, all checkpoints compared: how far is too far"),
    "push": (PushArguments, "push a run's model with its card to the Hugging Face Hub"),
    "bench": (BenchArguments, "measure the speed of PPO, by itself or against TRL 1.12, or of a comparison"),
    "pretrain": (PretrainConfig, "make the embedded base model again"),
    "preferences": (PreferencesConfig, "make the embedded preference pairs again"),
}


def _default(field: dataclasses.Field) -> object:
    """A field's default, a list as it is typed."""
    default = default_of(field)
    return " ".join(default) if isinstance(default, list) else default


def parser() -> argparse.ArgumentParser:
    """One subcommand a config, one flag a field, its docstring as help."""
    top = argparse.ArgumentParser(prog="python -m rlhf", description="Reinforcement learning from human feedback.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (config, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == "bench":
            command.add_argument("what", choices=["ppo", "compare"], help="what to measure")
        if name == "demo":
            command.add_argument("--recipe", metavar="NAME", help=f"settings under one name: {', '.join(names())}")
        if name == "push":
            command.add_argument("run", help="directory of a finished run")
        command.add_argument("--config", metavar="FILE", help="YAML file with settings; flags take precedence")
        docs = field_docs(config)
        for field in dataclasses.fields(config):
            help_text = f"{docs[field.name]} (default: {_default(field)})".replace("%", "%%")
            several = {"nargs": "+"} if "list" in str(field.type) else {}
            command.add_argument(f"--{field.name}", default=argparse.SUPPRESS, metavar="", help=help_text, **several)
    report = commands.add_parser("report", help="write REPORT.md from a demo run", description="Write REPORT.md.")
    report.add_argument("run", help="directory of a finished demo run")
    report.add_argument("--sweep", help="directory of a sweep, for over-optimisation (default: RUN/sweep)")
    report.add_argument("--output_file", default="REPORT.md", help="(default: REPORT.md)")
    return top


def settings(given: dict[str, object]) -> dict[str, object]:
    """Settings of the recipe and of the YAML file, if they are named, overridden by the flags."""
    recipe, file = given.pop("recipe", None), given.pop("config", None)
    of_recipe = read_recipe(recipe) if recipe else {}
    return {**of_recipe, **(read_settings(Path(file)) if file else {}), **given}


def interval(entry: dict, digits: int = 3) -> str:
    """An estimate with its 95 % interval."""
    return f"{entry['value']:.{digits}f} [{entry['ci_low']:.{digits}f}, {entry['ci_high']:.{digits}f}]"


def comparison_table(summary: dict) -> str:
    """Every model of a comparison in numbers, and what each shows against the base."""
    lines = []
    for split, found in summary["splits"].items():
        shown = found["models"]
        first = next(iter(shown.values()))
        what = f"{split} prompts: {first['prompts']}, answers to each: {first['samples']}"
        lines += ["", f"  {what:<42}" + "".join(f"{name:>12}" for name in shown)]
        rows = [
            ("score, mean", "mean", ".3f"),
            ("gold score, mean", "gold_mean", ".3f"),
            ("length in tokens, mean", "mean_length", ".1f"),
            ("responses that end by themselves", "eos_rate", ".1%"),
            ("different word pairs (distinct-2)", "distinct_2", ".3f"),
            ("perplexity under the base model", "base_perplexity", ".2f"),
        ]
        for label, key, form in rows:
            values = [model[key] for model in shown.values()]
            if None not in values:
                lines.append(f"  {label:<42}" + "".join(f"{value:>12{form}}" for value in values))
        for name, against in found["against_base"].items():
            lines += [
                "",
                f"  {name} against base, paired, with 95 % intervals over prompts:",
                *_against_lines(against),
            ]
            lines.append(f"    KL from the base: {interval(shown[name]['kl'], 2)} nats a response")
            lines += [f"    Caution: {caution}" for caution in against["cautions"]]
        lines += [line for name, seeds in found["seeds"].items() for line in _seed_lines(name, seeds, found)]
    return "\n".join(lines)


def _against_lines(against: dict) -> list[str]:
    lines = []
    for kind, label in (("score", "score"), ("gold", "gold score")):
        found = against[kind]
        if found:
            lines += [
                f"    gain in {label}: {interval(found['gain'])}, p = {found['p']:.2g}; the smallest that would have "
                f"shown: {found['detectable']:.3f}",
                f"    wins by {label}: {interval(found['win_rate'])} (chance: 0.5)",
            ]
    length = against["length"]
    if length["gain"] is not None:
        share = "" if length["explained"] is None else f"; length explains {length['explained']:.0%} of the gain"
        lines.append(
            f"    longer by {interval(length['longer'], 1)} tokens; gain in score at like length: "
            f"{length['gain']:.3f}{share}"
        )
    return lines


def _seed_lines(name: str, seeds: dict, found: dict) -> list[str]:
    lines = ["", f"  {name} trained {len(seeds['models'])} times, with other seeds; interval by Student's t:"]
    for kind, label in (("score", "score"), ("gold", "gold score")):
        if seeds[kind]:
            each = (found["against_base"][model][kind]["gain"]["value"] for model in seeds["models"])
            lines.append(
                f"    gain in {label}: {interval(seeds[kind])}; each: {', '.join(f'{gain:.3f}' for gain in each)}"
            )
    return lines


def demo_table(summary: dict) -> str:
    """The closing table of a demo."""
    seconds = summary["seconds"]
    names = {"reward": "reward model", "ppo": "PPO", "compare": "comparison", "total": "in all"}
    spent = ", ".join(f"{name} {seconds[key]:.0f}" for key, name in names.items() if key in seconds)
    return "\n".join([*_reward_lines(summary["reward_model"]), comparison_table(summary), "", f"Seconds: {spent}"])


def _reward_lines(reward: dict | None) -> list[str]:
    """How well the reward model judges; nothing of one that the demo did not train."""
    if reward is None:
        return []
    lines = [
        "",
        f"Reward model: loss {interval(reward['loss'])} nats (chance: 0.693), accuracy {interval(reward['accuracy'])}",
    ]
    if reward["rubric_agreement"] is not None:
        lines += [
            f"  the labels themselves agree with the rubric on {reward['label_ceiling']:.3f} of the held-out pairs,",
            f"  the reward model on {reward['rubric_agreement']:.3f}",
        ]
    return lines


def sweep_table(found: dict) -> str:
    """Every point of a sweep, by its distance from the base."""
    lines = ["", f"  {'gains over the base, with 95 % intervals':<42}{'KL, nats':>10}{'score':>26}{'gold score':>26}"]
    for point in sorted(found["points"], key=lambda point: point["kl"]["value"]):
        gold = interval(point["gold"]) if point["gold"] else ""
        lines.append(f"  {point['name']:<42}{point['kl']['value']:>10.2f}{interval(point['score']):>26}{gold:>26}")
    if found["fit"] and found["fit"]["turnover_kl"] is not None:
        lines.append(f"  The gold score turns down at about {found['fit']['turnover_kl']:.1f} nats.")
    return "\n".join(lines)


def preview_table(found: "Preview") -> str:
    """A data set in numbers, and its first pairs."""
    kind = "conversations" if found.conversational else "texts"
    lines = [
        "",
        f"{found.dataset_name}: {found.rows} rows of {kind}, {found.train} to train on, {found.held_out} held out, "
        f"{sum(found.dropped.values())} left out",
        *(f"  left out, {fault}: {count}" for fault, count in found.dropped.items()),
        "",
    ]
    measured = {f"{side}, characters": lengths for side, lengths in found.characters.items()}
    if found.tokens:
        measured["longer text of a pair, tokens"] = found.tokens
    lines.append(f"  {'length':<32}" + "".join(f"{name:>10}" for name in found.characters["prompt"]))
    lines += [f"  {label:<32}" + "".join(f"{n:>10}" for n in row.values()) for label, row in measured.items()]
    for number, pair in enumerate(found.first, start=1):
        lines += ["", f"Pair {number}", *(f"  {side + ':':<10}{shortened(text)}" for side, text in pair.items())]
    return "\n".join(lines)


def shortened(text: str, longest: int = 400) -> str:
    """A text as it fits a terminal: indented below its label, its middle left out if it is long."""
    text = text.strip()
    if len(text) > longest:
        text = f"{text[: longest // 2]} [...] {text[-longest // 2 :]}"
    return text.replace("\n", "\n" + " " * 12)


SEVERAL = int(os.environ.get("WORLD_SIZE", "1")) > 1
"""Whether a launcher has started several processes."""


def _joined() -> AbstractContextManager:
    """Several processes meet before they do anything, so that an error of one is known to all."""
    if not SEVERAL:
        if "MASTER_PORT" in os.environ and "RANK" not in os.environ:
            print("warning: this launcher has started one process; see README.md, Several processes", file=sys.stderr)
        return nullcontext()
    from rlhf import ranks

    return ranks.joined()


def run_command(name: str, given: dict[str, object]) -> None:
    """Build the config, then import what the command needs: a wrong flag is answered at once."""
    if SEVERAL and name not in ("reward", "ppo"):
        raise BadInput(f"{name} runs in one process; start it without a launcher.")
    if name == "report":
        from rlhf.report import write_report

        run = Path(given["run"])
        print(write_report(run, Path(given["output_file"]), Path(given["sweep"] or run / "sweep")))
        return
    named = given.pop("what" if name == "bench" else "run", None)
    config = build(COMMANDS[name][0], settings(given))
    if name == "push":
        from rlhf.export import push

        print(push(Run(named), config))
        return
    if name == "bench":
        from rlhf.bench import bench, bench_compare

        (bench_compare if named == "compare" else bench)(config)
        return
    if name == "preview":
        from rlhf.preview import preview

        print(preview_table(preview(**vars(config))))
        return
    if name in ("pretrain", "preferences"):
        from rlhf import pretrain

        print(getattr(pretrain, name)(config))
        return
    from rlhf import commands

    result = getattr(commands, name)(config)
    tables = {"demo": demo_table, "compare": comparison_table, "sweep": sweep_table}
    if name in tables and result:
        print(tables[name](result))


def main(arguments: list[str] | None = None) -> int:
    """Run one command, by default the one in `sys.argv`; a mistake is one sentence on standard error, exit code 2."""
    given = vars(parser().parse_args(arguments))
    try:
        with _joined():
            run_command(given.pop("command"), given)
    except FailedElsewhere:
        return 2
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
