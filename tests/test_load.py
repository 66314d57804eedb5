"""A little of what `load.py` measures; with --long a class of thirty, whose figures are printed."""

import re

import load
import pytest

from rlhf import models
from rlhf.feedback import Store
from rlhf.feedback.desk import store_of


pytestmark = pytest.mark.process


def figures(capsys):
    """What was printed: each figure's name, and the figure."""
    said = capsys.readouterr().out
    print(said)
    return {what.strip(): float(value) for what, value in re.findall(r"^(.+?) {2,}(-?[\d.]+) {3}", said, re.MULTILINE)}


def test_no_choice_is_lost_when_the_page_is_killed_while_a_class_chooses(
    tmp_path, base, long, tries, monkeypatch, capsys
):
    people, each, kills = (30, 100, 10) if long else (30, 10, 1)
    monkeypatch.setenv("RLHF_RUNS", str(tmp_path / "runs"))
    store = Store.open(store_of("everyday"), "everyday", models.revision(base[0]))
    count = 2 * people * each
    store.add((f"How {n}?\n", f"How {n}?", f"So {n}.", f"No {n}.", ("base", "base")) for n in range(count))
    load.choices_outlive_kills(tmp_path, people, each, kills)
    acknowledged, lost, twice, overheard = figures(capsys).values()
    assert (acknowledged, lost, twice, overheard) == (people * each, 0, 0, 0)
    tries(people * each)


@pytest.mark.long
def test_a_class_watches_chooses_and_chats_while_ppo_trains(tmp_path, capsys):
    load.people_watch_choose_and_chat(tmp_path, 30, 60)
    found = figures(capsys)
    assert found["words or secrets of others that somebody was sent"] == found["zombies, more than before"] == 0
    assert found["open files, more than before"] <= 3


@pytest.mark.long
def test_of_many_clicks_on_start_one_run_begins_and_every_other_waits_or_is_told_why(tmp_path, tries, capsys):
    load.clicks_on_train(tmp_path, 30, 240)
    under_way, waiting, untold, _ = figures(capsys).values()
    assert (under_way, untold) == (1, 0) and waiting <= 30
    tries(240)


@pytest.mark.long
def test_starts_and_stops_leave_no_process_and_no_open_file(tmp_path, tries, capsys):
    load.starts_and_stops(tmp_path, 50)
    zombies, files = figures(capsys).values()
    assert zombies == 0 and files <= 3
    tries(50)
