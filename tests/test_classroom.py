"""A class with a teacher: the server alone decides who that is and what the others may do.

The page is the real one, served from this process; no run begins here.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from itertools import cycle
from pathlib import Path

import pytest
from processes import serving_here

import app
from rlhf import models
from rlhf.config import BadInput
from rlhf.feedback import Store
from rlhf.feedback.desk import store_of
from rlhf.launch import classroom, jobs, limits
from rlhf.runs.directory import EXAMPLE, Run, list_runs
from rlhf.runs.files import write_json
from rlhf.ui import live
from rlhf.ui.classroom import NO_KEY, Classroom


KEY = "wooden-Horse 7\N{SNOWMAN}"
STOPPED = "ppo-20260101-000000-0001"
PAIRS, CHOSEN = 120, 30
LOCKED = {
    "runs": {"_start", "_resume", "start", "compare", "resume", "ballot.train", "ballot.steer"},
    "uploads": {"_uploaded", "_look", "_preview", "imported", "_read_upload"},
    "chat": {"_talk", "_ask_again", "chat"},
    "picker": {"pick"},
}
"""By lock, the events and the functions for scripts that it forbids to students."""
OF_TEACHER = {
    f"class.{name}" for name in ("look", "lock", "show_to_all", "stop_run", "move_run", "clear_class", "download")
}
FREE = {
    *(
        "_learns",
        "_switch",
        "lambda",
        "_expect",
        "preview",
        "js_fn",
        "open_page",
        "begun",
        "started",
        "ended",
        "_clear",
    ),
    *("_save", "_ask", "_delete", "annotate", "delete"),
    *("view", "follow", "lock_fields", "_stop", "stop", "status", "metrics", "runs", "scores"),
    *(f"{part}.{name}" for part in ("live", "comparing") for name in ("poll", "download", "beside", "details")),
    *("dialogue.look", "dialogue.vote", "dialogue.take_back", "projector.project", "export.download", ".download"),
    *("ballot.look", "ballot.choose", "ballot.undo", "ballot.take_away", "ballot.expect", "ballot.who"),
}
"""What changes nothing, or nothing that is not a visitor's own."""


@pytest.fixture(scope="module")
def address(tmp_path_factory, base):
    """A served class, whose runs only wait."""
    folder = tmp_path_factory.mktemp("class")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUNS", str(folder / "runs"))
        patch.setattr("tempfile.tempdir", str(folder))
        patch.setattr(jobs, "_begin_next", lambda: None)
        patch.setattr(classroom, "_secret", "")
        classroom.begin(KEY)
        store = Store.open(store_of("everyday"), "everyday", models.revision(base[0]))
        store.add((f"How {n}?\n", f"How {n}?", f"So {n}.", f"No {n}.", ("base",) * 2) for n in range(PAIRS))
        with serving_here() as address:
            yield address


@pytest.fixture
def store(address):
    """The choices of two people; beside them there is a run that was stopped, and nothing is locked or shown."""
    store = Store(store_of("everyday"))
    run = Run(store.path.parents[1] / STOPPED)
    run.path.mkdir()
    write_json(run.path / "config.json", {"kind": "ppo", "reward_model_path": str(EXAMPLE)})
    run.set_status(state="stopped", kind="ppo", created=1.0, started=1.0, owner=limits.mark("ann"))
    for number, (pair, choice) in enumerate(zip([*store.pairs][:CHOSEN], cycle("aab"))):
        store.choose(pair, choice, limits.mark("ann"))
        if number % 2:
            store.choose(pair, "a", limits.mark("bob"))
    yield store
    store.forget(None)
    for each in list_runs():
        shutil.rmtree(each.path)
    (run.path.parent / "class.json").unlink(missing_ok=True)


class Browser:
    """Somebody's browser, with a cookie if it has one, and a session of the page."""

    def __init__(self, address, cookie=""):
        self.address, self.cookie, self.session = address, cookie, os.urandom(8).hex()
        self.config = json.loads(self.get("/config"))
        self.parts = {part["id"]: part["props"] for part in self.config["components"]}

    def get(self, path, body=None, kind="application/json"):
        """The text of an answer, also of one that refuses."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        asked = urllib.request.Request(self.address + path, data, {"Content-Type": kind, "Cookie": self.cookie})
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.read().decode(errors="replace")

    def open(self):
        """Open the page, after which the lists that it shows are known for this session; what the page is sent."""
        return json.loads(self.send(self.named("open_page")[0]))["data"]

    def named(self, name):
        return [one for one in self.config["dependencies"] if one["api_name"].rstrip("_0123456789") == name]

    def send(self, event, **given):
        """What an event answers, as text: its inputs have their usual values but for those given, by id or label."""
        data = []
        for part in event["inputs"]:
            props = self.parts[part]
            name = re.sub(r"\W", "_", props.get("elem_id") or props.get("label") or str(props.get("storage_key")))
            data.append(given.get(name, props.get("value", props.get("default_value"))))
        asked = {"data": data, "fn_index": event["id"], "session_hash": self.session, "trigger_id": None}
        if not event["queue"]:
            return self.get("/gradio_api/run/predict", asked)
        self.get("/gradio_api/queue/join", asked)
        return self.get(f"/gradio_api/queue/data?session_hash={self.session}")

    def call(self, name, **request):
        """What a function for a script answers, `part.function`."""
        part, _, function = name.partition(".")
        (found,) = [i for i, props in self.parts.items() if props.get("elem_id") == part and "server_fns" in props]
        asked = {"session_hash": self.session, "component_id": found, "fn_name": function, "data": request}
        return json.loads(self.get("/gradio_api/component_server", asked))

    def upload(self, name, text):
        """Upload a file; what an upload button then holds, or why it was refused."""
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = f"{head}{text}\r\n--x--\r\n".encode()
        answer = self.get("/gradio_api/upload", body, "multipart/form-data; boundary=x")
        if not answer.startswith("["):
            return answer
        return {"path": json.loads(answer)[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def opened(address, query):
    """Status, headers of the answer to a link, which is not followed."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *given):
            return None

    try:
        answer = urllib.request.build_opener(Stay).open(f"{address}/?{query}", timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    return answer.status, answer.headers


def link(key=KEY):
    return f"teacher={urllib.request.quote(key)}&run=example"


@pytest.fixture
def student(address, store):
    return Browser(address)


@pytest.fixture
def teacher(address, store):
    return Browser(address, opened(address, link())[1]["set-cookie"].partition(";")[0])


# The key -------------------------------------------------------------------------------------------------------------


def test_a_link_with_the_key_makes_a_browser_the_teachers_and_leaves_the_address(address, teacher, student):
    status, headers = opened(address, link())
    assert (status, headers["location"]) == (303, "?run=example")
    assert {"HttpOnly", "SameSite=strict"} <= set(headers["set-cookie"].split("; "))
    assert "verdict" in teacher.call("class.look", run="example")
    for cookie in (
        "",
        f"{classroom.COOKIE}=",
        f"{classroom.COOKIE}={KEY.encode().hex()}",
        f"{classroom.COOKIE}=\u00e9",
    ):
        student.cookie = cookie
        assert student.call("class.look", run="example") == {"error": "Only your teacher can do this."}


def test_a_wrong_key_opens_an_ordinary_page_with_one_sentence(address, student):
    status, headers = opened(address, link("wooden-Horse 8"))
    assert (status, headers["location"]) == (303, "?run=example&teacher=")
    assert headers["set-cookie"].startswith(f'{classroom.COOKIE}=""; ') and "Max-Age=0" in headers["set-cookie"]
    asked = {"data": [{}, ""], "fn_index": student.named("open_page")[0]["id"], "session_hash": "s"}
    for query, said in (("", ""), ("?teacher=", NO_KEY)):
        answer = json.loads(student.get(f"/gradio_api/run/predict{query}", asked))
        assert answer["data"][2] == {"since": 0.0, "locks": [], "wrong": said}


@pytest.mark.parametrize("words", [["--help"], ["--teacher", "abc"]])
def test_the_key_is_an_option_of_the_program(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["app.py", *words])
    monkeypatch.setenv("RLHF_TEACHER", KEY)
    with pytest.raises(SystemExit) as ended:
        app.main()
    said = capsys.readouterr().out + str(ended.value)
    assert "--teacher KEY" in said or said == "error: The teacher's key has 3 characters; it needs at least 8."
    assert KEY not in said and "RLHF_TEACHER" not in os.environ  # which the training processes inherit


def test_without_a_key_there_is_no_class(root, monkeypatch):
    monkeypatch.setattr(classroom, "_secret", "")
    root.mkdir()
    write_json(root / "class.json", {"locks": list(classroom.LOCKS), "shown": "example", "since": 5.0})
    assert (classroom.locks(), classroom.shown(), classroom.bulletin()) == ([], (None, 0.0), {})
    assert "class" not in live.poll({"run": "example"})
    lesson = Classroom()
    assert (lesson.notice, lesson.outputs, lesson.show("example")) == ([], [], {})
    classroom.recognise("")
    assert not classroom.is_teacher() and not limits.shared()


# Locks ---------------------------------------------------------------------------------------------------------------


def functions(browser):
    return {
        f"{part['props'].get('elem_id') or ''}.{name}"
        for part in browser.config["components"]
        for name in part["props"].get("server_fns", ())
    }


def test_every_endpoint_is_known_here_to_be_locked_the_teachers_or_free(student):
    events = {event["api_name"].rstrip("_0123456789") for event in student.config["dependencies"]}
    assert events | functions(student) == set().union(*LOCKED.values(), OF_TEACHER, FREE)


TABLE = "prompt,chosen,rejected\n" + "".join(f"Q{n}?,Yes {n}.,No {n}.\n" for n in range(30))


def uploaded(browser):
    return {ending: browser.upload(f"own.{ending}", TABLE) for ending in ("csv", "txt")}


def tried(browser, own):
    """What each endpoint answers that a lock forbids, by lock and name; `own` are files that were uploaded before."""
    kept = {"example": [{"question": "Hi there!", "answers": [], "blind": False}]}
    talk = {"run": "example", "chat_models": ["base", "ppo"], "question": "Hi there!"}
    run = {"run": STOPPED, "rlhf_lab": "ann"}
    train, compare = browser.named("_start")
    (first, *_), (imported,) = browser.named("_preview"), browser.named("imported")
    api = {name: browser.named(name)[0] for name in ("start", "compare", "resume", "chat")}
    return {
        "runs": {
            "_start": browser.send(train) + browser.send(compare, compare_models=["example"], own_questions=""),
            "_resume": browser.send(browser.named("_resume")[0], **run),
            "start": browser.send(api["start"], **{"1st": "reward", "2nd": "{}", "3rd": "s1"}),
            "compare": browser.send(api["compare"], **{"1st": ["example"], "4th": 1, "5th": "s2"}),
            "resume": browser.send(api["resume"], **{"1st": STOPPED, "2nd": "ann"}),
            "ballot.train": json.dumps(browser.call("ballot.train", run="example", visitor="cem", alone=True)),
            "ballot.steer": json.dumps(browser.call("ballot.steer", run="example", visitor="dan", what="start")),
        },
        "uploads": {
            "_uploaded": browser.send(browser.named("_uploaded")[0], upload=own["csv"]),
            "_look": browser.send(browser.named("_look")[0]),
            "_preview": browser.send(first, demo_dataset_name="own.csv"),
            "imported": browser.send(imported, run="example", **{"import": own["csv"]}),
            "_read_upload": browser.send(browser.named("_read_upload")[0], **{READ: own["txt"]}),
            "upload": str(browser.upload("more.csv", TABLE)),
        },
        "chat": {
            "_talk": "".join(
                browser.send(browser.named("_talk")[0], **talk, **changed)
                for changed in ({"Temperature": 1.3}, {"Seed": "5"})
            ),
            "_ask_again": browser.send(
                browser.named("_ask_again")[0], **talk, Longest_answer=9, rlhf_lab_conversations=kept
            ),
            "chat": browser.send(api["chat"], **{"1st": "example", "2nd": "Hi there!", "3rd": 4}),
        },
        "picker": {"pick": browser.send(browser.named("pick")[0], run="example")},
    }


READ = "Take_them_from_a_file__text_with_one_on_each_line__or_a_table_with_a_column__prompt_"


def test_what_is_locked_is_refused_to_a_student_in_a_sentence_and_open_to_the_teacher(student, teacher):
    student.open(), teacher.open()
    own = {browser: uploaded(browser) for browser in (student, teacher)}
    assert "locked" not in student.send(student.named("_uploaded")[0], upload=own[student]["csv"])
    for lock in LOCKED:
        assert teacher.call("class.lock", lock=lock, on=True)["said"] == ""
    for lock, answers in tried(student, own[student]).items():
        sentence = f"Your teacher has locked {classroom.LOCKS[lock]}."
        assert LOCKED[lock] <= answers.keys()
        for name, answer in answers.items():
            assert answer.count(sentence) >= (2 if name in ("_start", "_talk") else 1), (name, answer[-600:])
    assert jobs.waiting() == []
    teachers = json.dumps(tried(teacher, own[teacher]))
    assert "Your teacher has locked" not in teachers and app.STRANGE not in teachers
    assert len(jobs.waiting()) == len(LOCKED["runs"])


def test_a_lock_is_opened_again_and_nothing_else_with_it(student, teacher):
    for lock in ("runs", "chat"):
        teacher.call("class.lock", lock=lock, on=True)
    poll = live.poll({"run": "example"})
    assert poll["class"] == {"locks": ["runs", "chat"], "since": 0.0}
    teacher.call("class.lock", lock="runs", on=False)
    assert classroom.locks() == ["chat"]
    teacher.call("class.lock", lock="no such lock", on=True)
    assert classroom.locks() == ["chat"]
    (fields,) = {event["id"]: event for event in student.named("lock_fields")[:1]}.values()
    known = {"since": 0.0, "locks": [], "wrong": ""}
    for browser, sentence in ((student, "Your teacher has locked the settings of Chat."), (teacher, "")):
        *changes, tab, notice = json.loads(browser.send(fields, class_note=known))["data"]
        assert notice["locks"] == ["chat"] and notice["said"] == sentence
        assert tab["visible"] is (browser is teacher)
        closed = [change for change in changes if change["interactive"] is False]
        assert [change["value"] for change in closed] == (
            [] if browser is teacher else [["base", "ppo"], 0.7, 64, "", ""]
        )


def test_training_on_choices_says_in_feedback_that_it_is_locked(student, teacher):
    asked = {"run": "example", "visitor": "ann"}
    assert student.call("ballot.look", **asked)["enough"]
    teacher.call("class.lock", lock="runs", on=True)
    told = student.call("ballot.look", **asked)
    assert (told["enough"], told["alone"]) == (False, "Your teacher has locked starting runs.")
    assert teacher.call("ballot.look", **asked)["enough"]


@pytest.mark.parametrize("name", sorted(OF_TEACHER))
def test_nobody_but_the_teacher_can_change_the_class(student, store, name):
    request = {"run": "example", "lock": "runs", "on": True, "show": "example", "id": STOPPED, "places": 1}
    assert student.call(name, **request) == {"error": "Only your teacher can do this."}
    assert classroom.locks() == [] and classroom.shown() == (None, 0.0)
    assert len(store.choices()) == CHOSEN * 3 // 2


def test_what_the_teacher_has_set_outlives_the_page_and_a_damaged_file_locks_nothing(teacher):
    teacher.call("class.lock", lock="uploads", on=True)
    teacher.call("class.show_to_all", show=STOPPED)
    code = "from rlhf.launch import classroom as c; c.begin('another key'); print(c.locks(), c.shown()[0])"
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout.split() == ["['uploads']", STOPPED]
    file = store_of("everyday").parents[1] / "class.json"
    for text in ("", '{"locks": 3, "shown": [], "since": "x"}', '{"locks": [[]], "shown": "../x"}'):
        file.write_text(text)
        assert (classroom.locks(), classroom.shown()) == ([], (None, 0.0))


# The run that everybody sees -----------------------------------------------------------------------------------------


def test_everybodys_page_turns_to_the_shown_run_once_and_may_then_look_elsewhere(student, teacher):
    student.open(), teacher.open()
    (follow,), known = student.named("follow"), {"since": 0.0, "locks": [], "wrong": ""}
    teacher.call("class.show_to_all", show=STOPPED)
    since = live.poll({"run": "example"})["class"]["since"]
    assert since > 0
    notice, picker, *_ = json.loads(student.send(follow, class_note=known))["data"]
    assert notice["since"] == since and picker["value"] == STOPPED
    notice, picker, *_ = json.loads(student.send(follow, class_note=notice))["data"]
    assert "value" not in picker
    (choose,) = student.named("ended")
    assert json.loads(student.send(choose, run="example"))["data"][0]["value"] == "example"
    teacher.call("class.lock", lock="picker", on=True)
    for browser, run in ((student, STOPPED), (teacher, "example")):
        assert json.loads(browser.send(choose, run="example"))["data"][0]["value"] == run
    assert student.open()[0]["value"] == STOPPED
    assert "There is no such run" in teacher.call("class.show_to_all", show="../x")["error"]
    teacher.call("class.show_to_all", show=None)
    assert json.loads(student.send(choose, run="example"))["data"][0]["value"] == "example"


# The queue, and the end of the lesson --------------------------------------------------------------------------------


def test_the_teacher_stops_and_reorders_anybodys_runs(student, teacher):
    (start,) = student.named("start")
    for name in ("ann", "bob", "cem"):
        student.send(start, **{"1st": "reward", "2nd": "{}", "3rd": name})
    ids = [run.id for run in jobs.waiting()]
    queue = teacher.call("class.move_run", run="example", id=ids[2], places=-1)["queue"]
    assert [each["id"] for each in queue] == [ids[0], ids[2], ids[1]]
    assert all(re.fullmatch(r"by [A-Z]\w+ [A-Z]\w+, waits", each["about"]) for each in queue)
    queue = teacher.call("class.stop_run", run="example", id=ids[0])["queue"]
    assert [each["id"] for each in queue] == [ids[2], ids[1]]
    assert teacher.call("class.move_run", id=ids[0], places=1) == {"error": "This run does not wait any more."}


def test_clearing_deletes_what_students_made_but_not_what_is_under_way(student, teacher, store):
    for browser, kind in ((student, "reward"), (student, "dpo"), (teacher, "reward")):
        browser.send(browser.named("start")[0], **{"1st": kind, "2nd": "{}", "3rd": kind})
    running, waits, teachers = jobs.waiting()
    root = running.path.parent
    by_command = Run.create(root / "by-command", "reward", {})
    by_command.finish("finished")
    running.start(10)
    teacher.call("class.show_to_all", show=waits.id)
    answer = teacher.call("class.clear_class", run="example")
    assert answer["said"] == (
        "Deleted: choices and votes, 45; runs of students, 2. Still under way: 1 run; clear again when it has stopped."
    )
    assert store.choices() == [] and len(store.pairs) == PAIRS
    assert running.status()["state"] == "stopping" and not waits.path.exists() and not (root / STOPPED).exists()
    assert classroom.shown()[0] is None
    running.finish("stopped")
    assert (
        teacher.call("class.clear_class", run="example")["said"]
        == "Deleted: choices and votes, 0; runs of students, 1."
    )
    assert not running.path.exists() and teachers.path.exists() and by_command.path.exists()


def test_the_download_holds_everything_but_models_and_names(student, teacher, store):
    run = Run(store.path.parents[1] / "demo-20260101-000000-0009")
    shutil.copytree(EXAMPLE, run.path)
    (run.path / "uploaded").mkdir()
    (run.path / "uploaded" / "own.csv").write_text("private")
    file = teacher.call("class.download")
    assert file["name"] == "class.zip"
    answer = urllib.request.urlopen(f"{student.address}/gradio_api/file={file['path']}", timeout=60).read()
    zipped = zipfile.ZipFile(io.BytesIO(answer))
    names = zipped.namelist()
    inside = f"runs/{run.id}/"
    assert {inside + "config.json", inside + "ppo/metrics.jsonl", inside + "summary.json"} <= set(names)
    assert f"runs/{STOPPED}/config.json" in names
    assert not [name for name in names if "/model/" in name or "uploaded" in name or name.endswith(".safetensors")]
    choices = zipped.read("choices/everyday/choices.jsonl").decode().splitlines()
    assert len(choices) == CHOSEN * 3 // 2
    assert {json.loads(line)["person"] for line in choices} == {"person 1", "person 2"}
    assert len(zipped.read("choices/everyday/pairs.jsonl").splitlines()) == CHOSEN


def test_the_projector_draws_two_curves_once_and_says_how_far_people_agree(student):
    first = student.call("projector.project", run="example")
    assert [caption for caption, _ in first["captions"]] == ["Score", "KL"] and len(first["figures"]) == 2
    assert "figures" not in student.call("projector.project", run="example", drawn=first["drawn"])
    (_, choices, by), (_, alike, interval) = first["tiles"]
    assert (choices, by, alike) == (str(CHOSEN * 3 // 2), "by 2 people", "67 %")
    assert re.fullmatch(r"95 % interval 4\d % to 8\d %, from 15 questions", interval)
    assert [caption for caption, _ in student.call("projector.project", run=STOPPED)["captions"]] == ["Score", "KL"]


# In browsers ---------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_students_window_follows_the_teachers(address, store, browser):
    """Locks, the shown run and the end of the lesson reach a page that is open, by its own poll."""
    problems, windows = [], []
    for query in (link(), "run=example"):
        page = browser.new_context(viewport={"width": 1280, "height": 720}).new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.set_default_timeout(60_000)
        page.goto(f"{address}/?{query}")
        page.wait_for_selector(".chart[data-part=ppo] .main-svg", state="attached")
        windows.append(page)
    teacher, student = windows
    assert teacher.url == f"{address}/?run=example"
    assert "Class" not in student.get_by_role("tab").all_inner_texts()
    assert teacher.evaluate("document.cookie") == ""
    teacher.get_by_role("tab", name="Class").click()
    teacher.get_by_label("Starting runs").check()
    teacher.get_by_label("Settings of Chat").check()
    student.locator("#start:disabled").wait_for()
    note = student.locator("#class-note p")
    note.get_by_text("Your teacher has locked starting runs and the settings of Chat.").wait_for()
    assert teacher.locator("#start").is_enabled()
    teacher.get_by_label("Starting runs").uncheck()
    student.locator("#start:enabled").wait_for()
    note.get_by_text("Your teacher has locked the settings of Chat.", exact=True).wait_for()
    teacher.goto(f"{address}/?run={STOPPED}&tab=class")  # without the key, which the browser has kept
    teacher.get_by_role("button", name="Show to everybody").click()
    student.wait_for_url(f"**/?run={STOPPED}")
    student.goto(f"{address}/?view=projector&run=example")
    student.locator(".projected .main-svg").first.wait_for()
    assert student.locator(".projected .value").all_inner_texts() == [str(CHOSEN * 3 // 2), "67 %"]
    assert student.evaluate("document.querySelector('.projected').scrollHeight") <= 720
    teacher.get_by_role("button", name="Clear the class").click()
    teacher.get_by_role("button", name="Yes, delete").click()
    teacher.get_by_text("Deleted: choices and votes, 45; runs of students, 1.").wait_for()
    student.locator(".projected .value", has_text="\u2013").wait_for()
    assert problems == []


# Where the key must not be -------------------------------------------------------------------------------------------


def test_the_key_is_in_no_answer_to_a_student_and_in_no_file(address, student, teacher):
    for lock in LOCKED:
        teacher.call("class.lock", lock=lock, on=True)
    for name in ("start", "resume"):
        teacher.send(teacher.named(name)[0], **{"1st": {"start": "reward"}.get(name, STOPPED), "2nd": "{}", "3rd": ""})
    root = store_of("everyday").parents[1]
    zips = [Path(teacher.call("class.download")["path"]), Path(teacher.call("live.download", run=STOPPED)["path"])]
    secret = classroom.cookie_for(KEY)
    told = [student.get(path) for path in ("/", "/config", "/gradio_api/info", f"/?{link('no such key')}")]
    told += [
        json.dumps(student.call(name, run="example", visitor="ann")) for name in functions(student) if name[0] != "."
    ]
    told += [student.send(student.named(name)[0]) for name in ("open_page", "ended", "follow", "lock_fields", "pick")]
    told += [file.read_text(errors="replace") for file in root.rglob("*") if file.is_file()]
    told += [
        file.read(name).decode(errors="replace") for file in map(zipfile.ZipFile, zips) for name in file.namelist()
    ]
    assert len(told) > 50
    words = [KEY, json.dumps(KEY)[1:-1], urllib.request.quote(KEY), secret, limits.mark(KEY)]
    assert not [text[:200] for text in told if any(word in text for word in words)]


def test_a_key_that_can_be_guessed_is_refused():
    with pytest.raises(BadInput, match="The teacher's key has 7 characters"):
        classroom.begin("1234567")
