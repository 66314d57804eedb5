"""Checkpoints that are either whole or not there: written aside, then renamed, with a manifest that is checked.

Tensors go to safetensors and everything else to JSON; nothing is pickled.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rlhf.config import BadInput


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(folder: Path, tensors: dict[str, dict[str, torch.Tensor]], state: dict) -> Path:
    """Write named groups of tensors and a JSON state as the checkpoint `folder`, all of it or nothing."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, group in tensors.items():
        # Tied weights share memory, which the format refuses: each is written out on its own.
        save_file(
            {key: value.detach().clone().contiguous() for key, value in group.items()},
            temporary / f"{name}.safetensors",
        )
    (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
    manifest = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
    (temporary / "MANIFEST.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder


def load(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """Read a checkpoint back after checking every file against the manifest.

    Raises:
        BadInput: there is no whole checkpoint in `folder`.
    """
    if not (folder / "MANIFEST.json").is_file():
        raise BadInput(f"{folder} is not a checkpoint; give a folder such as RUN/checkpoints/step-000010.")
    manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
    for name, digest in manifest.items():
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            raise BadInput(f"The checkpoint {folder} is damaged ({name}); resume from an earlier one.")
    tensors = {
        name.removesuffix(".safetensors"): load_file(folder / name)
        for name in manifest
        if name.endswith(".safetensors")
    }
    return tensors, json.loads((folder / "state.json").read_text(encoding="utf-8"))
