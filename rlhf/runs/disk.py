"""The disk that runs are written to: the room asked for before a save, and what a person is told where it fails."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.config import BadInput


_FREE = "free some space"
TROUBLE = {
    errno.ENOSPC: ("The disk is full", _FREE),
    errno.EDQUOT: ("Your share of the disk is used up", _FREE),
    errno.EFBIG: ("The disk takes no file of this size", _FREE),
    errno.EROFS: ("The disk is read-only", "choose a folder that can be written"),
    errno.EIO: ("The disk reports an error (input/output error)", "check it, or choose another one"),
}
"""What an error of the operating system says of the disk, and what to do."""


def trouble(error: BaseException | None) -> tuple[str, str] | None:
    """What is wrong with the disk and what to do, by an error or what led to it; None where it is another error.

    The writers of safetensors and tokenizers, which are written in Rust, put the system's words into errors of their
    own; PyTorch's finds itself at another place in the file than it should be.
    """
    while error is not None:
        for number, told in TROUBLE.items():
            if getattr(error, "errno", None) == number or f"(os error {number})" in str(error):
                return told
        if "unexpected pos" in str(error) or "PytorchStreamWriter failed" in str(error):
            return TROUBLE[errno.ENOSPC]
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def told(kept: str = "") -> Iterator[None]:
    """Tell in a sentence where the disk keeps the work inside from being done.

    Args:
        kept: a sentence on how things stand then.

    Raises:
        BadInput: the disk is full, read-only, or fails.
    """
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        if found := trouble(error):
            raise BadInput(f"{found[0]}: {found[1]}, and try again. {kept}".strip()) from error
        raise


def ask_for(size: int, folder: Path) -> None:
    """Ask for so many bytes before something is written, so that what is there stays whole.

    Raises:
        OSError: there are fewer.
    """
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
