"""Files to download: copies in the folder that Gradio serves, one for all who ask until the run changes."""

import hashlib
import os
import re
import shutil
import threading
import time
from pathlib import Path

from rlhf.runs.directory import Run
from rlhf.write import export


_packing = threading.Lock()


def _place(run: Run, cache: Path, ending: str) -> Path:
    """Where a download lies: under a name that an address can hold, each run's in a folder of its own."""
    folder = hashlib.sha256(os.fsencode(run.id)).hexdigest()[:16]
    return cache / "runs" / folder / (re.sub(r"[^\w .()+-]", "_", run.id) + ending)


def zip_of(run: Run, cache: Path) -> Path:
    """A zip of a run's directory as it is now."""
    target = _place(run, cache, ".zip")
    with _packing:
        changed = max(path.stat().st_mtime for path in export.run_files(run))
        if not target.exists() or target.stat().st_mtime < changed:
            began = time.time()
            export.write_zip(run, target)
            os.utime(target, (began, began))  # whatever was written meanwhile is newer than the zip
    return target


def csv_of(run: Run, cache: Path) -> Path:
    """A copy of the `scores.csv` of a run's comparison: the page serves no file of a run itself."""
    source, target = run.comparison() / "scores.csv", _place(run, cache, "-scores.csv")
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return target
