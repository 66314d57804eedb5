"""What a person does to runs: names, notes, and deleting them."""

import json
import os
import shutil
import sys

import pytest

from rlhf.config import BadInput
from rlhf.launch import jobs, limits
from rlhf.runs import directory
from rlhf.runs.directory import EXAMPLE, RECORD, Run, find_run, list_runs
from rlhf.runs.files import write_json
from rlhf.ui import api, chat, comparison_form, describe, live, own_run, run_choices, train


FIRST, SECOND = "demo-20260101-000000-0001", "ppo-20260102-000000-0002"
REVERSED = "\u202e"
"""Turns the text after it around."""


@pytest.fixture
def run(root):
    """A finished run with both models."""
    shutil.copytree(EXAMPLE, root / FIRST, ignore=shutil.ignore_patterns("sweep", "compare"))
    return Run(root / FIRST)


def other(root, kind="ppo", state="finished", **settings):
    """A run beside it."""
    made = Run.create(root / SECOND, kind, settings)
    made.finish(state)
    return made


# Names and notes -----------------------------------------------------------------------------------------------------


def test_a_name_and_a_note_stand_wherever_runs_are_listed_and_links_hold(run, root):
    other(root, reward_model_path=str(run.path / "reward"))
    assert own_run._save(run.id, " Polite <b>one</b> ", "\nkl 0.2 &\t seed 3\n\nworse", "")[1]["run"] == run.id
    assert run.id == FIRST and find_run(FIRST).title().startswith("Polite <b>one</b> · Reward and PPO · ")
    label = "finished · kl 0.2 & seed 3 worse"
    lists = [run_choices(), train.reward_runs(), comparison_form.ComparisonForm.choices(None, FIRST).choices]
    for found in lists:
        (shown,) = [label for label, name in found if name == FIRST]
        assert shown.startswith("Polite <b>one</b> · ") and shown.endswith(label)
    assert any(name.startswith("Polite <b>one</b>") for name in chat._others(Run(EXAMPLE)).values())
    assert own_run.noted(run) == (
        '<p class="noted"><b>Polite &lt;b&gt;one&lt;/b&gt;</b><br>kl 0.2 &amp; seed 3<br><br>worse</p>'
    )
    told = {one["id"]: (one["name"], one["note"]) for one in api.runs()}
    assert told[FIRST] == ("Polite <b>one</b>", "kl 0.2 & seed 3\n\nworse") and told[SECOND] == ("", "")
    own_run._save(run.id, "", "", "")
    assert own_run.noted(run) == "" and run.title().startswith("Reward and PPO · ")


@pytest.mark.parametrize("odd", ["\0", "\x1b[31m", REVERSED, "\ud800", "\u2028", "\u200b"])
def test_characters_that_nobody_sees_are_left_out_of_names(run, odd):
    api.annotate(run.id, f"a{odd}b", f"c{odd}d\nlast")
    assert run.about()["name"].isprintable() and run.about()["name"].startswith("a")
    assert all(line.isprintable() for line in run.about()["note"].split("\n")) and run.about()["note"][0] == "c"


def test_what_is_too_long_or_of_another_type_is_told(run):
    for name, note, message in (
        ("x" * 61, "", "A name has at most 60 characters, and this one 61; shorten it."),
        ("", "x\n" * 251, "A note has at most 500 characters, and this one 501; shorten it."),
    ):
        assert message in own_run._save(run.id, name, note, "")[0]
    assert run.about() == {}
    with pytest.raises(BadInput, match="are texts"):
        api.annotate(run.id, ["a"], None)
    assert "are texts" in own_run._save(run.id, None, "", "")[0]
    assert "not there any more" in own_run._save("gone", "", "", "")[0]


@pytest.mark.parametrize("damage", ["[1]", '{"name": 7}', "{", json.dumps({"name": "x" * 999})])
def test_a_damaged_note_is_named_and_hides_no_run(run, damage):
    (run.path / "about.json").write_text(damage)
    assert "about.json" in describe(FIRST) and FIRST in [name for _, name in run_choices()]
    own_run._save(run.id, "whole", "", "")
    assert "about.json" not in describe(FIRST)


# Deleting ------------------------------------------------------------------------------------------------------------


def test_a_run_is_deleted_by_a_second_click_that_was_told_what_is_lost(run, root):
    whole = other(root)
    told, sure, asked = own_run._ask(run.id, "")
    size = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file()) / 1e6
    assert run.title() in told and f"({FIRST}, {size:.1f} MB)? Nothing can bring it back." in told and sure.visible
    for never in (None, SECOND):  # nobody was asked about this one
        assert "says what is lost" in own_run._delete(run.id, never, "")[0] and run.path.exists()
    _, _, shown = own_run._delete(run.id, asked, "")
    assert (shown["run"], shown["said"].endswith(" was deleted.")) == ("example", True)
    assert [left.id for left in list_runs()] == [whole.id]
    assert sorted(os.listdir(root)) == [directory.DELETED, SECOND] and not os.listdir(root / directory.DELETED)
    assert "no such run" in live.poll({"run": FIRST})["error"]
    assert "not there any more" in own_run._delete(run.id, asked, "")[0]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("running", "is under way; stop it first."),
        ("stopping", "stop it first"),
        ("waiting", "Stop takes it out of the"),
    ],
)
def test_a_run_that_has_not_ended_is_not_deleted(run, state, said):
    run.set_status(state=state)
    with pytest.raises(BadInput, match=said):
        api.delete(run.id, True)
    assert said in own_run._ask(run.id, "")[0] and said in own_run._delete(run.id, run.id, "")[0]
    assert run.model("policy")


NEEDS = {
    "its reward model": ("ppo", "finished", lambda run: {"reward_model_path": str(run / "reward")}, True),
    "by a shorter path": ("ppo", "failed", lambda run: {"reward_model_path": f"{run}/../{run.name}"}, True),
    "to start from": ("dpo", "finished", lambda run: {"model_name_or_path": str(run / "ppo" / "model")}, True),
    "a comparison": ("compare", "stopped", lambda run: {"models": ["best-of-4", f"ppo={run}"]}, True),
    "a comparison that is done": ("compare", "finished", lambda run: {"models": [f"ppo={run}"]}, False),
    "another run": ("ppo", "finished", lambda run: {"reward_model_path": f"{run}0", "stop_token": "\0"}, False),
}


@pytest.mark.parametrize("need", NEEDS)
def test_a_run_that_another_needs_is_not_deleted_before_that(run, root, need):
    kind, state, settings, needed = NEEDS[need]
    needing = other(root, kind, state, **settings(run.path))
    if needed:
        with pytest.raises(BadInput, match=f"^{needing.title()} cannot do without a model of this run"):
            api.delete(run.id, True)
        jobs.delete(needing)
    assert FIRST in api.delete(run.id) and run.path.exists()  # nothing is deleted by the question
    api.delete(run.id, True)
    assert not run.path.exists()


def test_shipped_runs_and_on_a_shared_page_those_of_others_are_left_alone(run, monkeypatch):
    for shipped in (EXAMPLE, RECORD):
        for act in (lambda run_id: api.delete(run_id, True), api.annotate):
            with pytest.raises(BadInput, match="The example runs stay as they are."):
                act(shipped.name)
    run.set_status(owner=limits.mark("ann"))
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    for act in (lambda who: api.delete(FIRST, True, who), lambda who: api.annotate(FIRST, "x", "", who)):
        for who in ("", "bob"):
            with pytest.raises(BadInput, match="Only the browser that started this run"):
                act(who)
    api.annotate(FIRST, "mine", "", "ann")
    api.delete(FIRST, True, "ann")
    assert not run.path.exists()


def end_at(number):
    """End this process at so many changes of the disk."""
    left = iter(range(number))

    def count(event, given):
        if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") and next(left, None) is None:
            os._exit(9)

    sys.addaudithook(count)


def test_who_is_killed_while_deleting_leaves_a_run_whole_or_gone(run, root):
    files = {path.relative_to(run.path) for path in run.path.rglob("*")}
    seen = set()
    for number in range(1, 2 * len(files), 7):
        if not run.path.exists():
            shutil.copytree(EXAMPLE, run.path, ignore=shutil.ignore_patterns("sweep", "compare"))
        child = os.fork()
        if child == 0:
            end_at(number)
            jobs.delete(run)
            os._exit(0)
        _, code = os.waitpid(child, 0)
        there = [found.id for found in list_runs()] == [FIRST]
        assert not there or {path.relative_to(run.path) for path in run.path.rglob("*")} == files
        seen.add((os.waitstatus_to_exitcode(code), there))
        directory.clear_deleted()
        assert not list(root.glob(f"{directory.DELETED}/*")) and run.path.exists() == there
    assert seen == {(9, True), (9, False), (0, False)}


def test_the_next_start_sweeps_up_what_was_left_and_a_link_takes_nothing_else_along(run, root, tmp_path, monkeypatch):
    run.path.rename(tmp_path / "elsewhere")
    run.path.symlink_to(tmp_path / "elsewhere")
    jobs.delete(run)
    assert not run.path.is_symlink() and (tmp_path / "elsewhere" / "config.json").exists()
    (root / directory.DELETED / "left").mkdir(parents=True)
    write_json(root / directory.DELETED / "left" / "status.json", {})
    looks = iter(())
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: next(looks))
    with pytest.raises(StopIteration):
        jobs.watch()
    assert [path.name for path in root.rglob("*")] == [directory.DELETED]
