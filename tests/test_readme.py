"""The README files: short enough at the top, every link and path in them exists, and the Python examples run."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
TOP = ROOT / "README.md"
READMES = [TOP, *sorted((ROOT / "rlhf").rglob("README.md"))]
EXAMPLES = re.findall(r"```python\n(.*?)```", TOP.read_text(encoding="utf-8"), re.DOTALL)


def prose(readme):
    """A README without its code blocks."""
    return re.sub(r"```.*?```", "", readme.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(readme):
    """Fragments of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(readme), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name_of(readme):
    return str(readme.relative_to(ROOT))


def test_the_top_readme_is_read_in_three_minutes():
    assert len(TOP.read_text(encoding="utf-8").splitlines()) <= 200


def test_every_readme_is_reached_from_the_top_one():
    links = re.findall(r"\]\(([^)#:]+)", prose(TOP))
    assert {(ROOT / link).resolve() for link in links if link.endswith("README.md")} == set(READMES[1:])


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_every_link_leads_somewhere(readme):
    for link in re.findall(r"\]\(([^)]+)\)", prose(readme)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (readme.parent / path).resolve() if path else readme
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_every_file_and_test_that_is_named_exists(readme):
    spans = re.findall(r"`([^`\n]+)`", prose(readme))
    for span in spans:
        if re.fullmatch(r"(rlhf|assets|tests)/\S*", span):
            assert (ROOT / span).exists(), span
        elif re.fullmatch(r"\w+\.(py|js|css)", span):
            assert (readme.parent / span).exists(), span
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    for span in spans:
        if re.fullmatch(r"test_\w+", span):
            assert f"def {span}(" in tests, span


def test_the_tree_names_every_file_and_folder_of_the_package():
    tree = re.search(r"## Where to find things\n\n```\n(.*?)```", TOP.read_text(encoding="utf-8"), re.DOTALL).group(1)
    named = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    there = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "rlhf").iterdir()
        if path.name not in ("__init__.py", "__pycache__") and (path.is_dir() or path.suffix == ".py")
    }
    assert named == there | {"app.py", "assets", "REPORT.md", "tests"}


def test_the_formulas_that_the_reading_guide_names_are_in_the_algorithm():
    guide = (ROOT / "rlhf/ppo/README.md").read_text(encoding="utf-8").split("1. ")[1].split("2. ")[0]
    code = (ROOT / "rlhf/ppo/algorithm.py").read_text(encoding="utf-8")
    formulas = re.findall(r"`(\w+)`", guide)
    assert {"compute_rewards", "policy_losses"} <= set(formulas)  # the top README names these two
    for formula in formulas:
        assert f"def {formula}(" in code, formula


@pytest.mark.process
@pytest.mark.parametrize("example", EXAMPLES, ids=("reward model", "ppo"))
def test_the_python_examples_run(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    if "PPOTrainer" in example:
        first, last = map(float, printed.splitlines()[-1].split())
        assert last > first + 0.3
    else:
        assert "'eval_loss'" in printed
