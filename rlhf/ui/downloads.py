"""Files to download, made when somebody asks: copies in the folder that Gradio serves, one until the run changes."""

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from rlhf.runs.directory import Run, find_run
from rlhf.runs.disk import told
from rlhf.ui import served
from rlhf.ui.scripts import HEAD, script
from rlhf.write import export


_packing = threading.Lock()


def place(run: Run, cache: Path, ending: str) -> Path:
    """Where a download lies: under a name that an address can hold, each run's in a folder of its own."""
    folder = hashlib.sha256(os.fsencode(run.id)).hexdigest()[:16]
    return cache / "runs" / folder / (re.sub(r"[^\w .()+-]", "_", run.id) + ending)


def zip_of(run: Run, cache: Path) -> Path:
    """A zip of a run's directory as it is now."""
    target = place(run, cache, ".zip")
    with _packing:
        changed = max(path.stat().st_mtime for path in export.run_files(run))
        if not target.exists() or target.stat().st_mtime < changed:
            began = time.time()
            export.write_zip(run, target)
            os.utime(target, (began, began))  # whatever was written meanwhile is newer than the zip
    return target


def csv_of(run: Run, cache: Path) -> Path:
    """A copy of the `scores.csv` of a run's comparison: the page serves no file of a run itself."""
    source, target = run.comparison() / "scores.csv", place(run, cache, "-scores.csv")
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return target


def offer(view: gr.HTML, request: dict, make: Callable[[Run, Path], Path]) -> dict:
    """What `lab.download` fetches: the file that `make` makes of the run {"run": id}. Gradio clears it in an hour."""
    with told("The run itself is as it was."):
        path = make(find_run(str(request.get("run"))), Path(view.GRADIO_CACHE))
    view.temp_files.add(str(path))
    return {"path": path.as_posix(), "name": path.name, "size": path.stat().st_size / 1e6}


def download_button(label: str, make: Callable[[Run, Path], Path], **kwargs: object) -> gr.HTML:
    """Downloads the file that `make` makes of the run whose id is its value."""

    @served
    def download(request: dict) -> dict:
        return offer(button, request, make)

    button = gr.HTML(
        html_template=f'<button type="button">{label}</button><span class="said" role="status"></span>',
        js_on_load=script("download"),
        head=HEAD,
        server_functions=[download],
        apply_default_css=False,
        **kwargs,
    )
    return button
