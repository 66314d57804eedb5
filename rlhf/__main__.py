"""The command line: `python -m rlhf COMMAND --help`. Flags are the fields of the command's config."""

import argparse
import dataclasses
import sys
from pathlib import Path

import yaml

from rlhf.config import (
    BadInput,
    BenchArguments,
    CompareArguments,
    DemoArguments,
    PPOArguments,
    PreferencesConfig,
    PretrainConfig,
    RewardArguments,
    build,
    field_docs,
)


COMMANDS = {
    "demo": (DemoArguments, "reward model, PPO and comparison in a row, in a few minutes"),
    "reward": (RewardArguments, "train a reward model on preference pairs"),
    "ppo": (PPOArguments, "train a policy with PPO against a reward model"),
    "compare": (CompareArguments, "compare base and PPO model on the same test prompts"),
    "bench": (BenchArguments, "measure the speed of PPO, by itself or against TRL 1.12"),
    "pretrain": (PretrainConfig, "make the embedded base model again"),
    "preferences": (PreferencesConfig, "make the embedded preference pairs again"),
}


def parser() -> argparse.ArgumentParser:
    """One subcommand a config, one flag a field, its docstring as help."""
    top = argparse.ArgumentParser(prog="python -m rlhf", description="Reinforcement learning from human feedback.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (config, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == "bench":
            command.add_argument("what", choices=["ppo"], help="what to measure")
        command.add_argument("--config", metavar="FILE", help="YAML file with settings; flags take precedence")
        docs = field_docs(config)
        for field in dataclasses.fields(config):
            help_text = f"{docs[field.name]} (default: {field.default})".replace("%", "%%")
            command.add_argument(f"--{field.name}", default=argparse.SUPPRESS, metavar="", help=help_text)
    report = commands.add_parser("report", help="write REPORT.md from a demo run", description="Write REPORT.md.")
    report.add_argument("run", help="directory of a finished demo run")
    report.add_argument("--output_file", default="REPORT.md", help="(default: REPORT.md)")
    return top


def settings(given: dict[str, object]) -> dict[str, object]:
    """Settings of the YAML file, if one is named, overridden by the flags."""
    name = given.pop("config", None)
    if name is None:
        return given
    if not Path(name).is_file():
        raise BadInput(f"There is no file {name}; check --config.")
    try:
        read = yaml.safe_load(Path(name).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise BadInput(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(read, dict):
        raise BadInput(f"{name} must hold lines such as `learning_rate: 0.0003`.")
    return {**read, **given}


def demo_table(summary: dict) -> str:
    """The closing table of a demo."""
    base, tuned = summary["base"], summary["ppo"]
    reward, seconds = summary["reward_model"], summary["seconds"]

    def row(label: str, before: object, after: object) -> str:
        return f"  {label:<34}{before:>10}{after:>10}"

    def interval(entry: dict, value: str) -> str:
        return f"{entry[value]:.3f} [{entry['ci_low']:.3f}, {entry['ci_high']:.3f}]"

    lines = [
        "",
        f"Reward model: loss {reward['eval_loss']:.3f} (chance: 0.693), accuracy {reward['eval_accuracy']:.3f}",
    ]
    if reward["rubric_agreement"] is not None:
        lines += [
            f"  the labels themselves agree with the rubric on {reward['label_ceiling']:.3f} of the held-out pairs,",
            f"  the reward model on {reward['rubric_agreement']:.3f}",
        ]
    lines += [
        "",
        row("on the same unseen prompts", "base", "PPO"),
        row("score, mean", f"{base['mean']:.3f}", f"{tuned['mean']:.3f}"),
    ]
    if base["gold_mean"] is not None:
        lines.append(row("rubric (gold score), mean", f"{base['gold_mean']:.3f}", f"{tuned['gold_mean']:.3f}"))
    lines += [
        row("length in tokens, mean", f"{base['mean_length']:.1f}", f"{tuned['mean_length']:.1f}"),
        row("responses that end", f"{base['eos_rate']:.1%}", f"{tuned['eos_rate']:.1%}"),
        row("different word pairs (distinct-2)", f"{base['distinct_2']:.3f}", f"{tuned['distinct_2']:.3f}"),
        "",
        f"Gain in score: {interval(summary['gain'], 'mean')} (95 % interval)",
        f"PPO scores higher on {interval(summary['win_rate'], 'value')} of the prompts (chance: 0.5)",
    ]
    if summary["gold_gain"] is not None:
        lines += [
            f"Gain in rubric: {interval(summary['gold_gain'], 'mean')}",
            f"  on topics that training never saw: {interval(summary['unseen_topics']['gold_gain'], 'mean')}",
        ]
    lines += [
        f"KL from the base model: {summary['kl']['mean']:.1f} nats a response",
        f"Seconds: reward model {seconds['reward']:.0f}, PPO {seconds['ppo']:.0f}, "
        f"comparison {seconds['compare']:.0f}, in all {seconds['total']:.0f}",
    ]
    return "\n".join(lines)


def run_command(name: str, given: dict[str, object]) -> None:
    """Build the config, then import what the command needs: a wrong flag is answered at once."""
    if name == "report":
        from rlhf.report import write_report

        print(write_report(Path(given["run"]), Path(given["output_file"])))
        return
    given.pop("what", None)
    config = build(COMMANDS[name][0], settings(given))
    if name == "bench":
        from rlhf.bench import bench

        bench(config)
        return
    if name in ("pretrain", "preferences"):
        from rlhf import pretrain

        print(getattr(pretrain, name)(config))
        return
    from rlhf import commands

    result = getattr(commands, name)(config)
    if name == "demo" and result:
        print(demo_table(result))


def main(arguments: list[str] | None = None) -> int:
    """Run one command, by default the one in `sys.argv`; a mistake is one sentence on standard error, exit code 2."""
    given = vars(parser().parse_args(arguments))
    try:
        run_command(given.pop("command"), given)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
