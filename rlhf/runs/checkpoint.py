"""Checkpoints that are either whole or not there: written aside, then renamed, with a manifest that is checked.

Tensors go to safetensors and everything else to JSON; nothing is pickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from rlhf import ranks
from rlhf.config import BadInput
from rlhf.runs.directory import Run


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    # Tied weights share memory, which the format refuses: each is written out on its own.
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, path)


def save(
    folder: Path, tensors: dict[str, dict[str, torch.Tensor]], state: dict, write_model: Callable[[Path], object]
) -> Path:
    """Write the checkpoint `folder`, all of it or nothing.

    Args:
        tensors: named groups of tensors, a file each.
        state: what else is needed, as JSON.
        write_model: writes the model's own files into the folder it is given.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_model(temporary)
    for name, group in tensors.items():
        _write(group, temporary / f"{name}.safetensors")
    (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    manifest = {str(path.relative_to(temporary)): _sha256(path) for path in files}
    (temporary / "MANIFEST.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for path in (*files, temporary / "MANIFEST.json"):
        with path.open("rb+") as file:  # Windows flushes only what can be written
            os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder for the first rank to write into, which becomes `folder` once all is written, or is deleted."""
    unfinished = folder.with_name(f".{folder.name}")
    if not ranks.is_main_process():
        yield unfinished
        return
    try:
        yield unfinished
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def save_value_head(head: torch.nn.Module, folder: Path) -> None:
    """Write a value head's weights as `model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(head.state_dict(), folder / "model.safetensors")


def rotate(parent: Path, limit: int) -> None:
    """Delete the oldest of the folders `checkpoint-N` until `limit` are left."""
    found = sorted(parent.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    for folder in found[:-limit]:
        shutil.rmtree(folder)


def split_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict]:
    """An optimizer's state as tensors by name, and the rest, which JSON can hold."""
    state = optimizer.state_dict()
    tensors, rest = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, torch.Tensor) else rest)[f"{index}.{name}"] = value
    return tensors, {"entries": rest, "groups": state["param_groups"]}


def join_optimizer(tensors: dict[str, torch.Tensor], rest: dict) -> dict:
    """What `split_optimizer` took apart, as an optimizer loads it."""
    state: dict[int, dict] = {}
    for key, value in {**tensors, **rest["entries"]}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": rest["groups"]}


def find(named: str | None, kind: str, model: torch.nn.Module, use_peft: bool) -> Path | None:
    """The checkpoint that a setting names to resume from: its folder, or the newest one of a run; None for none.

    Args:
        kind: what resumes, "ppo", "reward" or "dpo".
        model: what the checkpoint's weights must fit.
        use_peft: whether adapters are trained.

    Raises:
        BadInput: there is none, it is damaged, or it is of another model.
    """
    if named is None:
        return None
    takes = "resume_from_checkpoint takes RUN/checkpoints/checkpoint-10, or RUN for its newest one"
    if not Path(named).is_dir():
        raise BadInput(f"There is no folder {named} to resume from; {takes}.", field="resume_from_checkpoint")
    whole = "MANIFEST.json" if kind == "ppo" else "trainer_state.json"
    stage = Run(named).stages().get(kind, Run(named))
    folders = [*stage.path.glob("checkpoint-*"), *stage.path.glob("checkpoints/checkpoint-*")]
    folders = sorted((f for f in folders if f.name.split("-")[1].isdecimal()), key=lambda f: int(f.name.split("-")[1]))
    found = [folder for folder in (*folders, Path(named)) if (folder / whole).is_file()]
    if not found:
        raise BadInput(
            f"{named} holds no checkpoint of {kind} to resume from; {takes}.", field="resume_from_checkpoint"
        )
    folder = found[-1]
    if kind == "ppo":
        _check_manifest(folder)
    else:
        _check_saved(folder)
    other = f"The checkpoint {folder} is of another model, or trains other parts of it."
    if (folder / "adapter_model.safetensors").exists() != use_peft:
        raise BadInput(other, field="resume_from_checkpoint")
    if (folder / "model.safetensors").exists():
        own = {name: list(value.shape) for name, value in model.state_dict().items()}
        try:
            with safe_open(folder / "model.safetensors", "pt") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  (no dict)
        except (SafetensorError, OSError) as error:
            raise _damaged(folder, "model.safetensors") from error
        if any(own.get(name) != shape for name, shape in shapes.items()):
            raise BadInput(other, field="resume_from_checkpoint")
    return folder


def _check_manifest(folder: Path) -> dict[str, str]:
    """The digests of a checkpoint's files by name.

    Raises:
        BadInput: a file is another one or gone.
    """
    try:
        manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
    except ValueError:
        manifest = {"MANIFEST.json": None}
    for name, digest in manifest.items():
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            raise _damaged(folder, name)
    return manifest


def _check_saved(folder: Path) -> None:
    """Check the files that Transformers' Trainer resumes from. Those of PyTorch are ZIP archives with checksums.

    Raises:
        BadInput: one is damaged or gone.
    """
    saved = {"trainer_state.json", "optimizer.pt", "scheduler.pt", *(path.name for path in folder.glob("*.[jp]*"))}
    for name in sorted(saved):
        try:
            if name.endswith(".json"):
                json.loads((folder / name).read_text(encoding="utf-8"))
            elif name.endswith((".pt", ".pth")):
                with ZipFile(folder / name) as file:
                    if file.testzip():
                        raise BadZipFile
        except (ValueError, BadZipFile, OSError) as error:
            raise _damaged(folder, name) from error


def _damaged(folder: Path, name: str) -> BadInput:
    return BadInput(
        f"The checkpoint {folder} is damaged ({name}); resume from an earlier one.", field="resume_from_checkpoint"
    )


def load(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """Read a checkpoint back after checking every file against the manifest.

    Raises:
        BadInput: there is no whole checkpoint in `folder`.
    """
    if not (folder / "MANIFEST.json").is_file():
        raise BadInput(f"{folder} is not a checkpoint; give a folder such as RUN/checkpoints/checkpoint-10.")
    manifest = _check_manifest(folder)
    tensors = {
        name.removesuffix(".safetensors"): load_file(folder / name)
        for name in manifest
        if name.endswith(".safetensors") and "/" not in name
    }
    return tensors, json.loads((folder / "state.json").read_text(encoding="utf-8"))
