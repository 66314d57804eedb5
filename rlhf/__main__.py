"""The command line: `python -m rlhf COMMAND --help`. Flags are the fields of the command's settings."""

import argparse
import dataclasses
import os
import sys
import typing
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rlhf import threads
from rlhf.config import (
    BadInput,
    BenchArguments,
    Diverged,
    FailedElsewhere,
    FeedbackArguments,
    PreferencesConfig,
    PretrainConfig,
    PreviewArguments,
    PushArguments,
    build,
    default_of,
    field_docs,
    typed,
)
from rlhf.config.recipes import names, read_recipe, read_settings
from rlhf.kinds import KINDS
from rlhf.runs.directory import Run
from rlhf.runs.disk import told
from rlhf.write import tables


TOOLS = {
    "preview": (PreviewArguments, "look at preference pairs before training: first rows, lengths, what is left out"),
    "feedback": (FeedbackArguments, "choose between two answers, for a reward model to learn from"),
    "push": (PushArguments, "push a run's model with its card to the Hugging Face Hub"),
    "bench": (
        BenchArguments,
        "measure the speed of PPO, of reward training or of a comparison, or what a reward model learns from choices",
    ),
    "pretrain": (PretrainConfig, "make the embedded base model again"),
    "preferences": (PreferencesConfig, "make the embedded preference pairs again"),
}
"""The commands that make no run: settings, and what they do."""
WHAT = {
    "bench": ("what to measure", ("ppo", "reward", "compare", "feedback")),
    "feedback": (
        "next prints pairs as JSON lines, choose and import read JSON lines, export prints what was preferred",
        ("next", "choose", "undo", "forget", "import", "export", "agreement"),
    ),
}
"""Commands that are several in one: what the word after them says, and which there are."""


def parser() -> argparse.ArgumentParser:
    """A subcommand per kind of run and per tool, with a flag per setting."""
    top = argparse.ArgumentParser(prog="python -m rlhf", description="Reinforcement learning from human feedback.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (config, summary) in ({name: (k.settings, k.summary) for name, k in KINDS.items()} | TOOLS).items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name in WHAT:
            help_text, choices = WHAT[name]
            command.add_argument("what", choices=choices, help=help_text)
        if name == "demo":
            command.add_argument("--recipe", metavar="NAME", help=f"settings under one name: {', '.join(names())}")
        if name == "push":
            command.add_argument("run", help="directory of a finished run")
        command.add_argument("--config", metavar="FILE", help="YAML file with settings; flags take precedence")
        _add_flags(command, config)
    report = commands.add_parser("report", help="write REPORT.md from a demo run", description="Write REPORT.md.")
    report.add_argument("run", help="directory of a finished demo run")
    report.add_argument("--sweep", help="directory of a KL sweep, for over-optimisation (default: RUN/sweep)")
    report.add_argument("--methods", help="directory of a comparison of methods (default: RUN/methods)")
    report.add_argument("--output_file", default="REPORT.md", help="(default: REPORT.md)")
    return top


def _add_flags(command: argparse.ArgumentParser, config: type) -> None:
    """A flag per field, with the field's docstring as help."""
    docs, hints = field_docs(config), typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        default = default_of(field)
        help_text = docs[field.name] if default is None else f"{docs[field.name]} (default: {typed(default)})"
        form = {"nargs": "+", "metavar": "VALUE"} if "list" in str(hints[field.name]) else {"metavar": ""}
        help_text = help_text.replace("%", "%%")
        command.add_argument(f"--{field.name}", default=argparse.SUPPRESS, help=help_text, **form)


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
    """Build the settings, then import what the command needs: a wrong flag is answered at once."""
    if SEVERAL and name not in ("reward", "ppo"):
        raise BadInput(f"{name} runs in one process; start it without a launcher.")
    if name == "report":
        from rlhf.write.report import write_report

        run = Path(given["run"])
        sweep, methods = Path(given["sweep"] or run), Path(given["methods"] or run / "methods")
        print(write_report(run, Path(given["output_file"]), sweep, methods))
    elif name in KINDS:
        make_run(name, settings(given))
    else:
        named = given.pop("what" if name in WHAT else "run", None)
        _use_tool(name, named, build(TOOLS[name][0], settings(given)))


def make_run(kind: str, values: dict[str, object]) -> None:
    """Make a run of this kind with these settings, and print what it came to."""
    config = build(KINDS[kind].settings, values)
    from rlhf import commands

    result = getattr(commands, kind)(config)
    if result and KINDS[kind].closing:
        print(getattr(tables, KINDS[kind].closing)(result))


def _use_tool(name: str, named: str | None, config: object) -> None:
    if name == "push":
        from rlhf.write.export import push

        print(push(Run(named), config))
    elif name == "feedback":
        from rlhf.feedback.cli import feedback

        for line in feedback(named, config):
            print(line)
    elif name == "bench":
        from rlhf.bench.comparisons import bench, bench_busy, bench_compare, bench_reward

        if named == "feedback":
            from rlhf.bench.feedback import bench_feedback

            bench_feedback(config)
        else:
            tools = {"ppo": bench_busy if config.busy else bench, "reward": bench_reward, "compare": bench_compare}
            tools[named](config)
    elif name == "preview":
        from rlhf.data.preview import preview

        given = (config.dataset_name, config.model_name_or_path, config.chat_template_kwargs, config.columns)
        print(tables.preview_table(preview(*given, config.as_conversations)))
    else:
        from rlhf import pretrain

        print(getattr(pretrain, name)(config))


def exit_code(work: Callable[..., None], *arguments: object) -> int:
    """Do some work; returns the process's exit code. A mistake is one sentence on standard error, and code 2."""
    try:
        with told(), _joined():
            work(*arguments)
    except FailedElsewhere:
        return 2
    except (BadInput, Diverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command, by default the one in `sys.argv`; returns the exit code."""
    threads.wait_briefly()
    given = vars(parser().parse_args(arguments))
    return exit_code(run_command, given.pop("command"), given)


if __name__ == "__main__":
    code = main()
    if SEVERAL:  # what is left of a process group can abort a process that is taken down (pytorch #179291, #190489)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
