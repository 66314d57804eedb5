"""How a run's work leaves: as the command or the Python that repeats it, as a zip, as a model on the Hub."""

import dataclasses
import shlex
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from rlhf.config import UPLOADED, BadInput, PushArguments, default_of, name_of_data, typed
from rlhf.feedback import Store
from rlhf.kinds import KINDS
from rlhf.runs.directory import Run
from rlhf.write.card import CARD, model_card


LEFT_OUT = {"checkpoints", UPLOADED}
"""Folders that a zip leaves out: what is needed only to resume, and a person's own data, which others may not see."""
_STORED = (".safetensors", ".gz", ".zip")
"""Endings of files that compression does not make smaller."""
_PUSHED = (".safetensors", ".json", ".jinja", ".txt", ".model", ".md")
"""Endings of the files that are pushed; none of them has to be unpickled."""


# The same run again ------------------------------------------------------------------------------------------------


def given_settings(run: Run) -> dict[str, object]:
    """A run's settings that differ from the defaults, and its seed; its directory is its own and left out."""
    config = run.config()
    changed = {}
    for field in dataclasses.fields(KINDS[config["kind"]].settings):
        default = default_of(field)
        value = config.get(field.name, default)
        if field.name == "seed" or (field.name != "output_dir" and value != default):
            # Whoever makes the run again has the file that was uploaded, wherever it is.
            changed[field.name] = name_of_data(value) if field.name == "dataset_name" else value
    return changed


def as_command(run: Run) -> str:
    """The shell command that makes this run again, in a fresh directory."""
    words = ["python", "-m", "rlhf", run.config()["kind"]]
    for name, value in given_settings(run).items():
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            # As one word, a value that begins with a dash is not taken for a flag.
            text = typed(value)
            words += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    return shlex.join(words)


def as_python(run: Run) -> str:
    """The Python script that makes this run again, in a fresh directory."""
    kind = run.config()["kind"]
    config = KINDS[kind].settings.__name__
    arguments = [f"{name}={value!r}" for name, value in given_settings(run).items()]
    call = f"{kind}({config}({', '.join(arguments)}))"
    if len(call) > 100:
        call = "\n".join([f"{kind}(", f"    {config}(", *(f"        {entry}," for entry in arguments), "    )", ")"])
    return f"from rlhf.commands import {kind}\nfrom rlhf.config import {config}\n\n\n{call}\n"


# A zip -------------------------------------------------------------------------------------------------------------


def run_files(run: Run) -> Iterator[Path]:
    """The files of a run that go into its zip: all but checkpoints and files that are still being written."""
    for path in sorted(run.path.rglob("*")):
        inside = path.relative_to(run.path).parts
        # A link may lead to what is none of this run's.
        if path.is_file() and not path.is_symlink() and LEFT_OUT.isdisjoint(inside) and not path.name.startswith("."):
            yield path


def size_mb(run: Run) -> float:
    """Estimated size of this run's zip in MB (10^6 bytes); text shrinks to about a fifth."""
    return sum(path.stat().st_size * (1 if path.suffix in _STORED else 0.2) for path in run_files(run)) / 1e6


def write_zip(run: Run, target: Path) -> Path:
    """Write a run's files, and a card beside each model that has none, into a new zip; returns `target`.

    A run may be zipped while it is still being written; the zip holds what is there at that moment.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as file:
            for path in run_files(run):
                packing = zipfile.ZIP_STORED if path.suffix in _STORED else zipfile.ZIP_DEFLATED
                with suppress(FileNotFoundError):  # the run may just have replaced it
                    file.write(path, _name_in_zip(run, path), packing)
            for folder in model_folders(run):
                if not (folder / CARD).exists():
                    file.writestr(_name_in_zip(run, folder / CARD), model_card(folder))
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def write_class(runs: Iterable[Run], stores: Iterable[Store], target: Path) -> Path:
    """Write what a class has made into a new zip; returns `target`.

    It holds the runs' settings, logs and scores, but no models, and the choices with the judged pairs, in which nobody
    can be told by name, without those from Chat.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for run in runs:
            for path in run_files(run):
                if "model" not in path.relative_to(run.path).parts:
                    with suppress(FileNotFoundError):  # the run may just have replaced it
                        file.write(path, f"runs/{_name_in_zip(run, path)}")
        for store in stores:
            with tempfile.TemporaryDirectory() as folder:
                store.copy_to(Path(folder, "copy"), chat=False)
                for path in sorted(Path(folder, "copy").glob("*.json*")):
                    file.write(path, f"choices/{store.path.name}/{path.name}")
    return target


def _name_in_zip(run: Run, path: Path) -> str:
    return f"{run.id}/{path.relative_to(run.path).as_posix()}"


def model_folders(run: Run) -> list[Path]:
    """The folders of a run that hold a finished model."""
    configs = (path for path in run_files(run) if path.parent.name == "model" and path.name == "config.json")
    return [path.parent for path in configs if Run(path.parent.parent).trainings()]


# A model on the Hub ------------------------------------------------------------------------------------------------


def model_folder(run: Run, what: str) -> Path:
    """Where a run keeps its "policy" or its "reward" model.

    Raises:
        BadInput: it has none.
    """
    folder = run.model(what)
    if folder:
        return folder
    name, other = ("policy", "reward") if what == "policy" else ("reward model", "policy")
    raise BadInput(f"{run.path} holds no finished {name}; name the directory of another run, or give --what {other}.")


def pushed_files(folder: Path) -> dict[str, Path | bytes]:
    """The files of a model folder that go to the Hub, by their names there, with a new card if the folder has none."""
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in _PUSHED}
    return {CARD: model_card(folder).encode(), **files}


def push(run: Run, args: PushArguments) -> str:
    """Push a run's model with its card to the Hub, in one commit; returns its address.

    Raises:
        BadInput: no such model, no network, or no right to write there.
    """
    folder = model_folder(run, args.what)
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in pushed_files(folder).items()
    ]
    hub = HfApi()
    try:
        address = hub.create_repo(args.repo_id, private=args.private, exist_ok=True)
        hub.create_commit(address.repo_id, operations, commit_message="Upload model")
    except (HTTPError, OSError) as error:  # huggingface_hub raises both
        raise BadInput(f"Nothing was pushed: {_reason(error)}, then push again.") from error
    return str(address)


def _reason(error: Exception) -> str:
    """Why the push failed, and what to do about it."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    code = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if code == 401:
        return "you are not logged in to the Hub; run `hf auth login` with a token that may write, or set HF_TOKEN"
    if code == 403:
        return "your token may not write there; choose another name, or a token with write access"
    if code is None:
        return "the Hub cannot be reached; check the network"
    return f"the Hub answered {code}; see https://status.huggingface.co"
