"""The Feedback tab: a person's choices count once and are kept, and nobody sees what is not theirs.

Everything is real: the page in a browser, the store, the embedded model that writes more pairs in the background.
"""

import functools
import json
import os
import shutil
import time
import urllib.request
from dataclasses import asdict
from urllib.parse import urlsplit

import gradio as gr
import pytest
from processes import forget, serving_here

from rlhf import models
from rlhf.config import BadInput, FeedbackArguments
from rlhf.feedback import Choice, Store
from rlhf.feedback.agreement import agreement
from rlhf.feedback.desk import Desk, desk, store_of
from rlhf.feedback.live import STATE, State, answering, folder_of, present, session, writer
from rlhf.feedback.names import name_of
from rlhf.feedback.store import BY_BASE, EVERY, IMPORTED
from rlhf.launch import jobs, limits
from rlhf.runs.directory import EXAMPLE, RECORD, Run, list_runs
from rlhf.runs.files import write_json
from rlhf.ui import feedback, learning
from rlhf.words import count, number, percent


OWN, GONE = "demo-20260101-000000-0001", "demo-20260101-000000-0002"
WORDS = "<img src=x onerror=alert(1)>"
PAIRS = 120


@pytest.fixture(scope="module")
def site(tmp_path_factory, base):
    """The served page: the example with 120 pairs, a run on data of a person's own, one whose model is gone."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUNS", str(root))
        store = Store.open(store_of("everyday"), "everyday", models.revision(base[0]))
        store.add(
            (f"How {n}?\n", f"How {n}? {WORDS}", f"So {n}. {WORDS}", f"No {n}.", ("base",) * 2) for n in range(PAIRS)
        )
        mine = root / "mine.jsonl"
        mine.write_text("".join(json.dumps({"prompt": f"How do I clean {n} pans?\n"}) + "\n" for n in range(30)))
        for run_id, settings in {
            OWN: {"model_name_or_path": "everyday", "dataset_name": str(mine)},
            GONE: {"model_name_or_path": str(root / "gone"), "dataset_name": "everyday"},
        }.items():
            run = Run(root / run_id)
            run.path.mkdir()
            write_json(run.path / "config.json", {"kind": "demo", **settings})
            run.set_status(state="finished", kind="demo", created=0.0)
        with serving_here() as address:
            yield address


@pytest.fixture
def store(site):
    """The choices about the example's model, as they are on disk."""
    return Store(store_of("everyday"))


@pytest.fixture(scope="module")
def windows(browser):
    """Pages of two browsers, with a list of what went wrong in them."""
    problems, pages = [], [browser.new_context().new_page() for _ in range(2)]

    def close(dialog):
        if dialog.type != "beforeunload":  # a page whose last choice is still on its way rightly asks before it goes
            problems.append(dialog.message)
        dialog.accept()

    for page in pages:
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", close)
        page.set_default_timeout(60_000)
    return pages, problems


@pytest.fixture
def visit(site, windows):
    """Opens the tab as another person; afterwards no page has had an error, and none has opened a dialog."""
    pages, problems = windows
    free = iter(pages)

    def open_tab(run="example", width=1280, height=900):
        page = next(free)
        page.set_viewport_size({"width": width, "height": height})
        page.goto(f"{site}/?run={run}&tab=feedback")
        if run != GONE:
            page.wait_for_selector(".duel")
        return page

    yield open_tab
    for page in pages:
        page.unroute_all()
        forget(page, site)
    assert problems == []


def question(page):
    return page.locator(".question").inner_text()


def press(page, key, times=1):
    """Choose by a key, as soon as the page takes a choice for the pair that it shows."""
    for _ in range(times):
        before = question(page)
        page.wait_for_timeout(450)
        page.keyboard.press(key)
        page.wait_for_function("before => document.querySelector('.question').textContent !== before", arg=before)


def saved(page, count):
    page.locator(".person", has_text=f"· {count} choice").wait_for()


def person_of(page):
    secret = page.evaluate("JSON.stringify(Object.fromEntries(Object.entries(localStorage)))")
    assert "rlhf-lab" in secret
    return page.locator(".person").inner_text().removeprefix("You choose as ").split(" · ")[0]


def marks_of(store, page):
    """The person of a page, as the store knows it."""
    return next(choice.person for choice in store.choices() if name_of(choice.person) == person_of(page))


# A choice ------------------------------------------------------------------------------------------------------------


def test_keys_and_clicks_choose_undo_brings_back_and_a_reload_keeps_person_and_count(visit, store):
    page = visit()
    first = question(page)
    assert first.endswith(WORDS) and page.locator(".duel .text").first.inner_text().startswith("So ")
    page.wait_for_timeout(450)
    # Nobody has read the second pair's answers yet.
    page.evaluate(
        "for (const key of '12') document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))"
    )
    saved(page, 1)
    press(page, "2")
    saved(page, 2)
    page.wait_for_timeout(450)
    page.locator("[data-choice=tie]").click()
    saved(page, 3)
    press(page, " ")  # what was clicked does not keep the space key
    saved(page, 4)
    fifth = question(page)
    press(page, "u")
    saved(page, 3)
    press(page, "Backspace")
    saved(page, 2)
    mark = marks_of(store, page)
    mine = [choice for choice in store.choices() if choice.person == mark]
    assert [choice.choice for choice in mine] == ["a", "b"] and store.pairs[mine[0].id].question == first
    press(page, "0")
    saved(page, 3)  # before that, the browser would ask whether to leave
    page.reload()
    page.wait_for_selector(".duel")
    saved(page, 3)
    assert marks_of(store, page) == mark and question(page) != fifth
    press(page, "u")  # a choice of before the reload
    saved(page, 2)
    assert question(page) not in [store.pairs[choice.id].question for choice in mine]


def test_a_double_click_counts_once_and_so_does_a_choice_whose_answer_was_lost(visit, store):
    page = visit()
    page.wait_for_timeout(450)
    page.locator("[data-choice=a]").dblclick()
    saved(page, 1)
    tried = []

    def interfere(route):
        if json.loads(route.request.post_data)["fn_name"] != "choose":
            return route.continue_()
        tried.append(route.request.post_data)
        if len(tried) == 1:
            return route.abort()
        if len(tried) == 2:
            route.fetch()  # it arrives, and the answer is lost
            return route.abort()
        return route.continue_()

    page.route("**/component_server/**", interfere)
    press(page, "2")
    page.locator(".saved", has_text="Your last choice is not saved yet: leave this page open").wait_for()
    assert "· 1 choice saved" in page.locator(".person").inner_text()
    press(page, "1")  # the next pair is here all the same
    saved(page, 3)
    assert len(tried) == 4 and page.locator(".saved").inner_text() == ""
    mark = marks_of(store, page)
    lines = [json.loads(line) for line in (store.path / "choices.jsonl").read_text().splitlines()]
    assert [line["choice"] for line in lines if line["person"] == mark] == ["a", "b", "a"]


def test_keys_do_nothing_in_another_tab_or_while_somebody_types(visit):
    page = visit()
    press(page, "1")
    saved(page, 1)
    before = question(page)
    page.wait_for_timeout(450)
    page.locator("#run input").focus()
    for key in "120u ":
        page.keyboard.press(key)
    page.get_by_role("tab", name="Chat").click()
    page.keyboard.press("1")
    page.get_by_label("Your question").press_sequentially("1 2 0 u")
    page.get_by_role("tab", name="Feedback").click()
    page.wait_for_timeout(1500)
    assert question(page) == before and "· 1 choice" in page.locator(".person").inner_text()
    page.locator("[data-choice=tie]").focus()
    page.keyboard.press(" ")  # the button that has the focus
    saved(page, 2)
    press(page, "u")
    assert question(page) == before
    saved(page, 1)


# People --------------------------------------------------------------------------------------------------------------


def test_two_browsers_are_two_people_who_meet_at_the_eighth_pair_and_their_agreement_is_shown(visit, store):
    pages = [visit(), visit()]
    seen = [set(), set()]
    for _ in range(EVERY - 1):
        for page, asked in zip(pages, seen, strict=True):
            asked.add(question(page))
            press(page, " ")
    assert not seen[0] & seen[1] and question(pages[0]) == question(pages[1])
    press(pages[0], "1")
    press(pages[1], "2")
    for page in pages:
        saved(page, EVERY)
    assert marks_of(store, pages[0]) != marks_of(store, pages[1])
    found = agreement(Store(store.path).judgements())
    shown = [str(found.pairs), percent(found.raw), "–" if found.alpha is None else number(found.alpha, 2)]
    pages[0].wait_for_function(
        "wanted => [...document.querySelectorAll('.stands .value')].slice(2).every((node, i) => "
        "node.textContent === wanted[i])",
        arg=shown,
    )


def test_a_person_deletes_their_own_choices_and_nobody_elses(visit, store):
    page, other = visit(), visit()
    for one in (page, other):
        press(one, "1", 2)
        saved(one, 2)
    mark, before = marks_of(store, page), store.choices()
    page.get_by_role("button", name="Delete my choices").click()
    assert page.locator(".sure").inner_text().startswith("Delete your 2 choices?")
    page.get_by_role("button", name="No, keep").click()
    page.get_by_role("button", name="Delete my choices").click()
    page.get_by_role("button", name="Yes, delete").click()
    saved(page, 0)
    assert mark not in (store.path / "choices.jsonl").read_text()
    assert store.choices() == [choice for choice in before if choice.person != mark]


# By HTTP, as a browser asks ------------------------------------------------------------------------------------------


@pytest.fixture
def ask(site):
    """Call a server function of the tab: ask(name, **request)."""
    config = json.load(urllib.request.urlopen(f"{site}/config"))
    component = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "ballot")

    def call(name, **request):
        body = {"data": {"run": "example", **request}, "component_id": component, "fn_name": name}
        body["session_hash"] = f"session of {request.get('visitor')}"
        asked = urllib.request.Request(
            f"{site}/gradio_api/component_server/", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(asked))

    return call


def test_nobody_is_given_what_another_looks_at_nor_told_who_wrote_it(ask, store):
    given = [ask("look", visitor=f"reader {n}", count=3)["pairs"] for n in range(12)]
    ids = [pair["id"] for pairs in given for pair in pairs]
    assert len(ids) == len(set(ids)) == 36
    assert {frozenset(pair) for pairs in given for pair in pairs} == {frozenset(("id", "question", "a", "b"))}
    assert [pair["id"] for pair in ask("look", visitor="reader 0", count=3)["pairs"]] == ids[:3]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"id": "0123456789abcdef", "choice": "a"}, "There is no pair '0123456789abcdef' here"),
        ({"choice": "a"}, "please reload it"),
        ({"id": "x", "choice": "c"}, "A choice is one of a, b, tie, skip"),
        ({"id": "x", "choice": "a", "visitor": ""}, "Your browser keeps no name for you"),
        ({"id": "x", "choice": "a", "run": "gone"}, "There is no such run"),
        ({"id": "x", "choice": "a", "count": "many"}, "please reload it"),
    ],
)
def test_a_choice_for_what_was_never_asked_is_refused(ask, store, request_, message):
    before = store.choices()
    assert message in ask("choose", **{"visitor": "stranger", **request_})["refused"]
    assert store.choices() == before


def test_whoever_chooses_in_two_windows_is_told_that_the_first_choice_stands(ask, store):
    (pair,) = ask("look", visitor="two windows")["pairs"]
    assert ask("choose", visitor="two windows", id=pair["id"], choice="a")["own"] == 1
    told = ask("choose", visitor="two windows", id=pair["id"], choice="b")
    assert "that choice stands" in told["said"] and told["own"] == 1
    for _ in range(2):  # as often as it is sent
        assert ask("undo", visitor="two windows", id=pair["id"])["own"] == 0
    assert ask("look", visitor="two windows")["pairs"] == [pair]


# In and out ----------------------------------------------------------------------------------------------------------


def test_what_is_exported_can_be_imported_elsewhere_and_a_bad_line_changes_nothing(visit, store, tmp_path):
    page = visit()
    press(page, "1")
    saved(page, 1)
    with page.expect_download() as download:
        page.locator("#export button").click()
    text = download.value.path().read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert rows == Store(store.path).preferences() and {"prompt", "chosen", "rejected"} == set(rows[0])
    page = visit(OWN)
    (folder,) = (path for path in store.path.parent.iterdir() if path.name.startswith("everyday_on"))
    other = Store(folder)
    assert other.choices() == []
    assert "pans" in question(page)
    (tmp_path / "bad.jsonl").write_text(text + "{\n")
    page.locator(".feedback-files input[type=file]").set_input_files(tmp_path / "bad.jsonl")
    page.locator("#feedback-note", has_text=f"Nothing was imported (line {len(rows) + 1}: not JSON)").wait_for()
    assert other.choices() == []
    (tmp_path / "pairs.xlsx").write_bytes(b"\xff\xfe")
    page.locator(".feedback-files input[type=file]").set_input_files(tmp_path / "pairs.xlsx")
    page.locator("#feedback-note", has_text="no text in UTF-8").wait_for()
    (tmp_path / "good.jsonl").write_text(text)
    page.locator(".feedback-files input[type=file]").set_input_files(tmp_path / "good.jsonl")
    page.locator("#feedback-note", has_text="preferences were imported").wait_for()
    distinct = {json.dumps(row) for row in rows}
    assert {json.dumps(row) for row in other.preferences()} == distinct
    page.locator(".stands", has_text=f"{len(distinct)} were imported").wait_for()
    assert {choice.person for choice in other.choices()} == {IMPORTED}


# Training ------------------------------------------------------------------------------------------------------------


def test_too_few_choices_train_nothing_and_say_how_many_are_missing():
    few, enough = feedback.training_words(3), feedback.training_words(20)
    assert few["train"] == "Train on our 3 choices: 2 more needed" and not few["enough"]
    assert feedback.training_words(1)["train"] == "Train on our 1 choice: 4 more needed"
    assert enough["train"] == "Train on our 20 choices" and enough["enough"]
    assert "a taste that shows in many answers" in enough["alone"] and "those 4 says next" in enough["alone"]
    assert "those 100 can be off by 10 percentage points" in feedback.training_words(500)["alone"]
    assert "those 6,000 can be off by 1 percentage point." in feedback.training_words(30_000)["alone"]


def test_the_button_starts_a_run_and_the_train_tab_shows_it(visit, ask, monkeypatch):
    started = []
    monkeypatch.setattr(feedback, "start", lambda *given: started.append(given) or Run(EXAMPLE.parent / OWN))
    for turn in range(10):
        (pair,) = ask("look", visitor="trainer")["pairs"]
        ask("choose", visitor="trainer", id=pair["id"], choice="ab"[turn % 2])
    page = visit()
    button = page.locator(".train-on:enabled", has_text="Train on our ")
    page.locator(".expected", has_text="Takes about").wait_for()
    page.get_by_text("together with the shipped pairs").click()
    page.locator(".honest", has_text="Beside thousands of pairs").wait_for()
    button.click()
    page.wait_for_function(f"new URL(location).searchParams.get('run') === '{OWN}'")
    assert page.get_by_role("tab", name="Train").get_attribute("aria-selected") == "true"
    ((run, store, alone, visitor),) = started
    assert (run.id, store.path.name, alone) == ("example", "everyday", False) and len(visitor) == 32


def test_a_run_is_started_on_a_copy_of_the_choices_and_knows_nobody(store, root, monkeypatch):
    begun = []
    monkeypatch.setattr(jobs, "_begin", begun.append)
    run = feedback.start(Run(EXAMPLE), store, True, "secret")
    assert [one.id for one in begun] == [run.id]
    settings = run.config()
    assert (settings["kind"], settings["model_name_or_path"]) == ("demo", "everyday") and settings["feedback_only"]
    assert run.status()["owner"] == limits.mark("secret") and settings["feedback"] == str(run.path / jobs.CHOICES)
    copy = Store(settings["feedback"])
    assert copy.preferences() == store.preferences() != []
    assert not {choice.person for choice in copy.choices()} & {choice.person for choice in store.choices()}
    with pytest.raises(BadInput, match="at least 5"):
        feedback.start(Run(EXAMPLE), Store.open(store.path.parent / "empty", "everyday", "0"), True, "secret")


# Learning live -------------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(monkeypatch, root):
    """The runs that were begun, whose processes are not started, in a folder of runs of their own."""
    runs = []

    def begin(run):
        runs.append(run.id)
        run.set_status(state="running", pid=os.getpid())

    monkeypatch.setattr(jobs, "_begin", begin)
    return runs


def test_whoever_comes_late_sees_the_state_and_who_started_may_stop_go_back_and_start_afresh(
    base, begun, root, monkeypatch
):
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")  # others use the page too
    store = Store.open(root / "feedback" / "mine", "everyday", models.revision(base[0]))
    assert learning.standing(store, "pupil") is None
    run = learning.start({"seed": 3, "num_prompts": 7}, store, "teacher", afresh=False)
    assert run.config()["store"] == str(store.path) and run.config()["seed"] == 3
    store.add((f"How {n}?", f"How {n}?", "So.", "No.", ("base", writer(run, State(2)))) for n in range(8))
    for n, pair_id in enumerate(store.pairs):
        store.choose(pair_id, "a" if n < 3 else "b", "ann")
    for n in (1, 2):
        folder_of(run, n).mkdir(parents=True)
        write_json(folder_of(run, n) / STATE, asdict(State(n, n - 1, made=float(n), choices=10 * n)))
    seen = learning.standing(store, "pupil")
    assert seen["active"] and not seen["yours"] and seen["state"] == "State 2: it has learned from 20 choices."
    assert seen["share"] == "The class prefers the new answers in 62 % of 8 pairs [31 %, 86 %]."
    assert [n for n, _ in seen["states"]] == [0, 1, 2] and seen["states"][2][1].endswith("preferred 62 %")
    assert answering(store) == {"base", writer(run, State(2))}

    for what, state in (("stop", 0), ("back", 1)):
        with pytest.raises(BadInput, match="Only the browser that started this run"):
            learning.steer(store, "pupil", what, state)
    with pytest.raises(BadInput, match="Only the browser that started this run"):
        learning.start({}, store, "pupil", afresh=True)
    with pytest.raises(BadInput, match="already"):
        learning.start({}, store, "teacher", afresh=False)
    with pytest.raises(BadInput, match="There is no state 7"):
        learning.steer(store, "teacher", "back", 7)
    learning.steer(store, "teacher", "back", 1)
    assert learning.standing(store, "pupil")["number"] == 1
    run.finish("stopped")
    assert answering(store) == BY_BASE and learning.standing(store, "teacher")["resumable"]
    learning.steer(store, "teacher", "resume")
    assert begun == [run.id, run.id]
    run.finish("stopped")
    again = learning.start({}, store, "teacher", afresh=True)
    kept = [choice for choice in store.choices() if present(again).counts(choice)]
    assert session(store).id == again.id != run.id and kept == [] and len(store.choices()) == 8


def test_a_session_is_started_from_the_page_and_asks_for_a_store_first(ask, store, begun, monkeypatch, root):
    monkeypatch.setenv("RLHF_RUNS", str(store.path.parents[1]))
    assert "error" in ask("steer", visitor="teacher", what="stop")
    assert ask("steer", visitor="teacher", what="start") == {"done": True}
    live = ask("look", visitor="late")["live"]
    assert live["active"] and live["state"].startswith("It has learned nothing yet")
    assert "already" in ask("steer", visitor="other", what="start")["error"]
    assert "no state 4" in ask("steer", visitor="teacher", what="back", state=4)["error"]
    run = Run(store.path.parents[1] / begun[0])
    run.finish("stopped")
    shutil.rmtree(run.path)
    assert ask("look", visitor="late")["live"] is None


def test_two_runs_answer_in_random_order_and_people_say_which_is_better(ask, store):
    assert ("example", "the example run") in map(tuple, ask("who")["voices"])
    between, judged = ["example", "base"], []
    for _ in range(12):
        until(lambda: ask("look", visitor="judge", between=between)["pairs"])
        (shown,) = ask("look", visitor="judge", between=between)["pairs"]
        pair = Store(store.path).pairs[shown["id"]]
        assert set(pair.models) == {"example", "base"}
        ask("choose", visitor="judge", between=between, id=pair.id, choice="ab"[pair.models[0] == "base"])
        judged.append(pair)
    assert {pair.models[0] for pair in judged} == {"example", "base"}
    tiles = ask("look", visitor="judge", between=between)["tallies"]
    assert tiles[-1][:2] == ["example preferred to base", "100 %"] and "of 12 pairs" in tiles[-1][2]
    (shown,) = ask("look", visitor="judge")["pairs"]
    assert Store(store.path).pairs[shown["id"]].models == ("base", "base")
    for wrong, message in ((["example", "example"], "two different models"), (["base", "gone"], "is gone")):
        assert message in ask("look", visitor="judge", between=wrong)["refused"]


# The desk ------------------------------------------------------------------------------------------------------------


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_desk_keeps_pairs_ready_and_rests(site, base, tmp_path):
    args = FeedbackArguments(store=str(tmp_path / "store"))
    loaded = []
    at = desk(args, lambda name: loaded.append(name) or base)
    assert desk(args, None) is at and loaded == []  # the model is loaded when somebody comes
    assert at.ask("ann", 2) == [] and at.doing == "Loading the language model"
    until(lambda: at.store and at.store.waiting() >= 44 and not at.doing)
    made = len(at.store.pairs)
    assert len(at.ask("ann", 2)) == 2
    until(lambda: at.store.waiting() >= 44 and not at.doing)
    assert made <= len(at.store.pairs) <= made + 16 and loaded == ["everyday"]
    # After a restart what was made is asked at once, and choices that were on their way arrive.
    again = Desk(args, lambda name: time.sleep(60))
    (pair,) = again.ask("ann", 1)
    assert again.store.choose(pair.id, "a", "ann")


def test_an_answer_takes_no_longer_where_thousands_have_chosen(tmp_path):
    """All choices are counted after each one, and a class of thirty makes thousands an hour."""
    store = Store.open(tmp_path / "store", "everyday", "0123")
    pairs = store.add((f"How {n}?\n", f"How {n}?", f"So {n}.", f"No {n}.", ("base", "base")) for n in range(700))
    at = Desk(FeedbackArguments(store=str(store.path)), lambda name: time.sleep(60))

    def seconds(first, end):
        """To tell how things stand, once thirty people have chosen for these pairs too."""
        with (store.path / "choices.jsonl").open("a") as file:
            for pair in pairs[first:end]:
                for person in range(30):
                    file.write(json.dumps(asdict(Choice(pair.id, f"person {person}", "a", 1.0))) + "\n")
        took = []
        for _ in range(10):
            began = time.process_time()
            told = feedback.standing(at, "ann", 3)
            took.append(time.process_time() - began)
        assert told["tallies"][1][:2] == ("All choices", count(30 * end))
        return min(took)

    few = seconds(0, 10)
    assert seconds(10, 700) < 4 * few


@pytest.mark.process
def test_where_many_people_choose_each_prompt_gives_several_questions(base, tmp_path):
    at = Desk(FeedbackArguments(store=str(tmp_path / "store")), lambda name: base)
    people = [f"person {place}" for place in range(30)]
    for person in people:
        at.ask(person, 2)
    until(lambda: at.store and at.store.waiting() >= 160 and not at.doing)
    pairs = at.store.pairs.values()
    assert len(pairs) > 4 * len({pair.question for pair in pairs})
    given = [at.ask(person, 2) for person in people]
    assert all(len({pair.question for pair in two}) == 2 for two in given[:5])
    at.close()


@pytest.mark.process
def test_the_tab_says_how_questions_are_picked(base, tmp_path):
    at = Desk(FeedbackArguments(store=str(tmp_path / "store")), lambda name: base)
    standing = functools.partial(feedback.standing, at, wanted=1)
    assert standing(person="ann")["picked"] == ""  # nothing has been asked yet
    until(lambda: at.store and at.store.waiting() > 20)
    few_words = "A and B are picked to have few words in common."
    for turn in range(20):
        assert standing(person="ann")["picked"] == few_words
        at.store.choose(at.store.next("ann")[0].id, "ab"[turn % 2], "ann")
    assert standing(person="ann")["picked"].startswith("Every other question is picked to tell most")
    for person in ("bob", "cat", "dan", "eve"):
        standing(person=person)
    assert standing(person="ann")["picked"] == few_words
    at.close()


def test_a_model_of_which_no_two_answers_differ_is_said_to_be_one(base, tmp_path):
    at = Desk(FeedbackArguments(store=str(tmp_path / "store"), response_length=1), lambda name: base)
    at.ask("ann", 1)
    until(lambda: at.error)
    assert at.error == "everyday gives no two different answers that end, so there is no choice." and not at.doing


def test_the_folders_of_choices_are_no_runs_and_stay_where_they_belong(site, root):
    assert {run.id for run in list_runs()} <= {OWN, GONE}
    for name in ("everyday", "../../etc", "/home/ann/model", "someone/model", ".", "x" * 300):
        assert store_of(name).parent == root / "feedback" and len(store_of(name).name) < 100
    assert store_of("a/b") != store_of("a_b") and store_of("everyday", "mine.csv") != store_of("everyday")


# How it looks --------------------------------------------------------------------------------------------------------


def test_a_model_that_is_gone_is_one_sentence(visit):
    page = visit(GONE)
    page.locator(".making .verdict", has_text="is neither a folder nor a Hub name").wait_for()
    assert page.locator(".making progress").is_hidden() and page.locator(".duel").is_hidden()


def test_where_no_model_can_answer_the_tab_says_so_at_once(site):
    with gr.Blocks():
        tab = feedback.FeedbackTab()
    for run, why in ((RECORD.name, "too large to ship"), (None, "Start a run in the Train tab")):
        shown = tab.show(run, "secret")
        assert why in shown[tab.empty] and not shown[tab.body].visible
    assert tab.show("example", "secret")[tab.body].visible


def test_on_a_phone_everything_to_choose_is_in_sight_and_nothing_overflows(visit):
    page = visit(width=400, height=800)
    press(page, "1")
    page.evaluate("window.scrollTo(0, 0)")
    for part in (
        ".question",
        ".duel .answer >> nth=0",
        ".duel .answer >> nth=1",
        "[data-choice=a]",
        "[data-choice=undo]",
    ):
        box = page.locator(part).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 800, part
    page.locator(".duel .text").first.evaluate("node => { node.textContent = 'A long answer. '.repeat(120); }")
    page.evaluate("window.scrollTo(0, 0)")
    box = page.locator("[data-choice=undo]").bounding_box()
    assert box["y"] + box["height"] <= 800
    page.get_by_role("button", name="Delete my choices").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert urlsplit(page.url).query.count("tab=feedback") == 1
