"""The rooms and their arrows: imports point one way, and the package knows no Gradio."""

import ast
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
# From the ground up; a room may import those before it.
ROOMS = (
    "threads", "config", "kinds", "metrics", "words", "rewards", "ranks", "everyday", "runs", "models", "data",
    "compare", "reward", "dpo", "ppo", "pretrain", "bench", "figures", "write", "commands", "__main__", "launch", "ui",
)  # fmt: skip
FILES = sorted((ROOT / "rlhf").rglob("*.py"))


def imported(path):
    """Names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module):
    return module.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path):
    room = path.relative_to(ROOT / "rlhf").parts[0].removesuffix(".py")
    if room == "__init__":
        return
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    used = {room_of(module) for module in imported(path) if module.startswith("rlhf.") and room_of(module) in ROOMS}
    assert used <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_page_knows_gradio(path):
    if "ui" not in path.parts:
        assert not any(module.split(".")[0] == "gradio" for module in imported(path))


def test_no_file_is_over_ten_megabytes():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    if not tracked:
        pytest.skip("not a git checkout")
    assert [name for name in tracked if (ROOT / name).stat().st_size > 10_000_000] == []
