"""The command line: `python -m rlhf COMMAND --help`. Flags are the fields of the command's config."""

import argparse
import dataclasses
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

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
from rlhf.runs.directory import Run
from rlhf.write.tables import comparison_table, demo_table, preview_table, sweep_table


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


SEVERAL = int(os.environ.get("WORLD_SIZE", "1")) > 1
"""Whether a launcher has started several processes."""


def _joined() -> AbstractContextManager:
    """Several processes meet before they do anything, so that an error of one is known to all."""
    if not SEVERAL:
        if "MASTER_PORT" in os.environ and "RANK" not in os.environ:
            print("warning: this launcher has started one process; see README.md, Several processes", file=sys.stderr)
        return nullcontext()
    from rlhf import ranks

    return ranks.init_process_group()


def run_command(name: str, given: dict[str, object]) -> None:
    """Build the config, then import what the command needs: a wrong flag is answered at once."""
    if SEVERAL and name not in ("reward", "ppo"):
        raise BadInput(f"{name} runs in one process; start it without a launcher.")
    if name == "report":
        from rlhf.write.report import write_report

        print(write_report(Path(given["run"]), Path(given["output_file"]), Path(given["sweep"] or given["run"])))
        return
    named = given.pop("what" if name == "bench" else "run", None)
    config = build(COMMANDS[name][0], settings(given))
    if name == "push":
        from rlhf.write.export import push

        print(push(Run(named), config))
        return
    if name == "bench":
        from rlhf.bench import bench, bench_compare

        (bench_compare if named == "compare" else bench)(config)
        return
    if name == "preview":
        from rlhf.data.preview import preview

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
    code = main()
    if SEVERAL:  # what is left of a process group can abort a process that is taken down (pytorch #179291, #190489)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
