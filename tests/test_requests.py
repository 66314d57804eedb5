"""What somebody without our page may send: every handler is public, and Gradio's known holes stay closed."""

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest
from processes import serving_here
from starlette.testclient import TestClient

import app
from rlhf.config import BadInput
from rlhf.launch import jobs, limits
from rlhf.runs.directory import Run


def no_launch(*given, **more):
    raise BadInput("No run is started here.")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUNS", str(folder / "runs"))
        patch.setattr("tempfile.tempdir", str(folder))
        patch.setattr(jobs, "launch", no_launch)
        with serving_here() as address:
            yield address


def ask(url, body=None, **headers):
    """Status, headers and text of an answer."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    kind = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, kind), timeout=60) as answer:
            return answer.status, answer.headers, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode(errors="replace")


def config_of(address):
    return json.loads(ask(f"{address}/config")[2])


def sent(address, event, data):
    """How an event is answered: True, or what is said is wrong."""
    asked = {"data": data, "fn_index": event["id"], "session_hash": os.urandom(8).hex(), "trigger_id": None}
    if not event["queue"]:
        status, _, text = ask(f"{address}/gradio_api/run/predict", asked)
        return True if status == 200 else json.loads(text)["error"] if status == 500 else text
    assert ask(f"{address}/gradio_api/queue/join", asked)[0] == 200
    stream = f"{address}/gradio_api/queue/data?session_hash={asked['session_hash']}"
    with urllib.request.urlopen(stream, timeout=60) as lines:
        news = (json.loads(line.removeprefix(b"data:")) for line in lines if line.startswith(b"data:"))
        done = next(entry for entry in news if entry["msg"] == "process_completed")
    return True if done["success"] else done["output"]["error"]


ODD = (None, [[[]]], {"a": {"b": []}}, "\ud800x", 1e308, float("inf"), ["a", None, 3])


def test_every_event_answers_odd_values_with_a_sentence(address, long, tries):
    """One of its inputs with one odd value, and one too few; with --long every odd value in many of them."""
    config = config_of(address)
    parts = {part["id"]: part["props"] for part in config["components"]}
    # Of events that share a handler, as those of Chat's chips, the first.
    events = {
        event["api_name"].rstrip("_0123456789"): event for event in config["dependencies"][::-1] if event["inputs"]
    }
    assert len(events) > 20
    tried = 0
    for number, event in enumerate(events.values()):
        usual = [parts[part].get("value", parts[part].get("default_value")) for part in event["inputs"]]
        cases = [(number % len(usual), ODD[number % len(ODD)])]
        if long:
            cases = [(place, value) for place in range(0, len(usual), 1 + len(usual) // 8) for value in ODD]
        for data in (usual[:-1], *([*usual[:place], value, *usual[place + 1 :]] for place, value in cases)):
            answer = sent(address, event, data)
            assert answer is True or len(answer) > 10, (event["api_name"], data)
            tried += 1
    tries(tried)


def test_half_a_character_is_left_out_of_what_was_sent(address):
    """JSON can carry it. No answer can, so nobody would get one; and it is text to no tokenizer."""
    config = config_of(address)
    parts = {part["id"]: part["props"] for part in config["components"]}
    preview, chat = (
        next(event for event in config["dependencies"] if event["api_name"] == name) for name in ("_preview", "chat")
    )
    usual = [parts[part].get("value", parts[part].get("default_value")) for part in preview["inputs"]]
    assert sent(address, preview, ["\ud800nowhere.csv", *usual[1:]]) is True
    assert "write a question" in sent(address, chat, ["example", "\ud800 ", 0])


@pytest.mark.parametrize(
    "request_",
    [None, "x", {"run": "\ud800"}, {"run": "example", "seen": {"ppo": 1e999}, "visitor": "x", "count": 1e999}],
)
def test_every_function_for_a_script_answers_odd_requests_with_a_sentence(address, request_):
    parts = [part for part in config_of(address)["components"] if part["props"].get("server_fns")]
    assert len(parts) > 3
    for part in parts:
        for name in part["props"]["server_fns"]:
            asked = {"session_hash": "s", "component_id": part["id"], "fn_name": name, "data": request_}
            status, _, text = ask(f"{address}/gradio_api/component_server", asked)
            assert status == 200 and json.loads(text), (name, text)
    for envelope in ({}, {"session_hash": "s", "component_id": 10**6, "fn_name": "poll", "data": {}}):
        assert ask(f"{address}/gradio_api/component_server", envelope)[0] == 400


NAMES = (
    "..", "../..", "/", "\\", "%2e%2e", "%2f", "．．", "／", "\0", "\u202e", "CON", "-rf", " ", "~", "$HOME", "*", "?",
    "\n", "'", "x" * 300, "runs", "mine", "secret", "ppo-20260101-000000-abcd", ".page", ".deleted", "file://",
    "//host/share", "example/../..", "{0}", "<b>",
)  # fmt: skip
NO_NAMES = (
    None, True, 3, [], ["mine"], {}, {"path": "../secret"},
    {"meta": {"_type": "gradio.FileData"}, "path": "../secret"},
)  # fmt: skip
"""What somebody may send as the name of a run."""


def test_no_name_of_a_run_leads_out_of_the_folder_of_runs(address, long, tries):
    root, temporary = Path(os.environ["RLHF_RUNS"]), Path(os.environ["GRADIO_TEMP_DIR"])
    for place, known in ((root / "mine", "canary inside"), (root.parent / "secret", "canary outside")):
        Run.create(place, "ppo", {"reward_model_path": known}).set_status(state="failed", message=known)

    def around():
        """All that lies beside the folder of runs, and when it was changed."""
        found = [path for path in root.parent.rglob("*") if not {root, temporary} & {path, *path.parents}]
        return {path: path.stat().st_mtime_ns for path in found}

    parts = [part for part in config_of(address)["components"] if part["props"].get("server_fns")]
    endpoints = [event for event in config_of(address)["dependencies"] if event["api_visibility"] == "public"]
    assert len(endpoints) > 5

    def answers(name):
        """Of everything that takes a run's name."""
        for part in parts:
            for function in part["props"]["server_fns"]:
                request = {"run": name, "name": name, "id": name, "visitor": "ada", "page": "p", "seen": {}}
                asked = {"session_hash": "s", "component_id": part["id"], "fn_name": function, "data": request}
                yield ask(f"{address}/gradio_api/component_server", asked)[2]
        for event in endpoints:
            call, data = f"{address}/gradio_api/call/{event['api_name']}", [name for _ in event["inputs"]]
            yield ask(f"{call}/{json.loads(ask(call, {'data': data})[2])['event_id']}")[2]

    list(answers("example"))  # by now the libraries have made what they keep in the temporary folder
    assert any("canary inside" in text for text in answers("mine"))
    rng, before = random.Random(0), around()
    names = [*NO_NAMES, *("".join(rng.choices(NAMES, k=rng.randint(1, 4))) for _ in range(300))]
    names = ["../secret", str(root.parent / "secret"), *(names if long else names[:20:5])]
    for name in names:
        assert not any("canary outside" in text for text in answers(name)), name
    assert around() == before
    tries(len(names))


def test_all_uploads_of_an_hour_together_have_a_limit(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(app.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(limits, "UPLOADS", 2)

    async def taken(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"taken"})

    page = TestClient(app.BodyLimit(taken))

    def upload(size):
        return page.post("/gradio_api/upload", content=bytes(size)).status_code

    assert [upload(limits.UPLOAD // 2) for _ in range(5)] == [200] * 4 + [413]
    assert page.post("/gradio_api/upload", content=iter([b"x"])).status_code == 413  # of a size that is not said
    assert page.post("/gradio_api/queue/join", content=b"x").status_code == 200
    now[0] = app.CLEARING + app.KEPT + 1
    assert upload(limits.UPLOAD // 2) == 200


def test_what_an_earlier_page_has_left_is_cleared_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "gradio" / "ab12").mkdir(parents=True)
    for name in ("gradio/ab12/own.csv", "tmpx1", "matplotlib"):
        (tmp_path / name).write_text("x") if name != "matplotlib" else (tmp_path / name).mkdir()
    (tmp_path / "matplotlib" / "fontlist.json").write_text("{}")
    app._clear(tmp_path)
    assert (tmp_path / "tmpx1").exists()
    later = time.time() + app.KEPT + 10
    monkeypatch.setattr(app.time, "time", lambda: later)
    app._clear(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["fontlist.json"]


# Gradio's advisories -------------------------------------------------------------------------------------------------


def uploaded(address, name, content):
    """Where an uploaded file lies."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = head + content + b"\r\n--x--\r\n"
    return json.loads(ask(f"{address}/gradio_api/upload", body, Content_Type="multipart/form-data; boundary=x")[2])[0]


SECRET = Path(app.__file__).resolve()
FORGED = {
    "path": {"path": str(SECRET), "meta": {"_type": "gradio.FileData"}},
    "path without its type": {"path": str(SECRET)},
    "address": {"path": "x", "url": f"file://{SECRET}", "meta": {"_type": "gradio.FileData"}},
    "name": {"path": str(SECRET), "orig_name": "own.csv", "is_file": True, "data": None},
    "relative path": {"path": "app.py", "meta": {"_type": "gradio.FileData"}},
    "text": str(SECRET),
}


@pytest.mark.parametrize("forged", FORGED)
def test_no_file_of_the_server_is_taken_for_an_upload(address, forged):
    """CVE-2024-1561, -1728, -4941, -51751"""
    config = config_of(address)
    buttons = [part["id"] for part in config["components"] if part["type"] == "uploadbutton"]
    parts = {part["id"]: part["props"] for part in config["components"]}
    events = [event for event in config["dependencies"] if set(buttons) & set(event["inputs"])]
    assert len(events) >= 3
    for event in events:
        data = [FORGED[forged] if part in buttons else parts[part].get("value") for part in event["inputs"]]
        answer = sent(address, event, data)
        assert answer is True or "build_app" not in answer
    assert not [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.name == "app.py"]


def test_no_method_of_a_component_can_be_called(address):
    """CVE-2024-0964, -1561"""
    for part in config_of(address)["components"][:40]:
        for name in ("postprocess", "move_resource_to_block_cache", "__init__", "preprocess", "load_event"):
            asked = {"session_hash": "s", "component_id": part["id"], "fn_name": name, "data": str(SECRET)}
            assert ask(f"{address}/gradio_api/component_server", asked)[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        f"file={SECRET}",
        f"file/{SECRET}",
        "file=../app.py",
        "file=http://127.0.0.1:9/x",
        "file=//127.0.0.1:9/x",
        "file=%2e%2e/%2e%2e/etc/passwd",
        "proxy=http://127.0.0.1:9/x",
        "stream/../../etc/passwd",
        "static/../../../../../../etc/passwd",
        "assets/..%2f..%2f..%2f..%2fetc/passwd",
        "custom_component/x/client/component/../../../etc/passwd",
        "monitoring",
        "monitoring/summary",
        "runs",
        "deep_link",
        "../login/huggingface",
        "../oauth/callback?_target_url=http://127.0.0.1:9/x",
        "../logout?_target_url=http://127.0.0.1:9/x",
    ],
)
def test_no_address_leads_to_a_file_another_server_or_the_numbers_of_use(address, path):
    """CVE-2023-51449, CVE-2024-4325, -2206, -47167, -47168, CVE-2026-27167, -28414, -28415, -28416, -48545, #13596"""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    connection.request("GET", f"/gradio_api/{path}")
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace")
    assert answer.status in (400, 403, 404, 405, 422), text[:200]
    assert "root:" not in text and "build_app" not in text and answer.getheader("location") is None


def test_the_folder_of_runs_is_served_under_no_spelling(address):
    """CVE-2025-23042"""
    root = Path(os.environ.get("RLHF_RUNS", "runs")).resolve()
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text('{"secret": "build_app"}')
    for path in (str(root / "config.json"), str(root / "CONFIG.JSON"), str(root).upper() + "/config.json"):
        assert ask(f"{address}/gradio_api/file={path}")[0] in (403, 404)


@pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://127.0.0.1.evil.example"])
def test_no_other_page_reads_an_answer(address, origin):
    """CVE-2024-47084, -47165, CVE-2025-5320"""
    status, headers, _ = ask(f"{address}/config", Origin=origin, Cookie="session=1")
    assert headers.get("access-control-allow-origin") in (None, address)
    assert ask(f"{address}/gradio_api/queue/join", {"data": []}, Origin=origin)[0] == 403


@pytest.mark.parametrize("name", ["x.html", "x.svg", "x.js", "x.xhtml"])
def test_an_uploaded_page_is_never_shown_as_one(address, name):
    """CVE-2024-47872, GHSA-3xvj-7669-6whx"""
    path = uploaded(address, name, b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    status, headers, _ = ask(f"{address}/gradio_api/file={path}")
    assert status in (403, 404) or headers["content-disposition"].startswith("attachment")
    assert status in (403, 404) or headers["x-content-type-options"] == "nosniff"


def test_a_boundary_or_a_header_without_end_costs_no_time(address):
    """CVE-2024-8966, -10624, pull request 11433"""
    began = time.process_time()
    boundary = "-" * 60_000
    kind = f"multipart/form-data; boundary={boundary}"
    assert ask(f"{address}/gradio_api/upload", b"-" * 500_000, Content_Type=kind)[0] in (400, 413, 422, 431)
    assert time.process_time() - began < 5


def test_what_the_advisories_are_about_is_not_used(address):
    """CVE-2024-47867, -47870, -47871, CVE-2025-48889, GHSA-qqr5-x4m8-g4gq, CVE-2024-10624, CVE-2026-27167"""
    options = app.launch_options()
    assert not (options["share"] or options["enable_monitoring"] or options["mcp_server"] or options["run_history"])
    assert options["strict_cors"] is True
    used = {part["type"] for part in config_of(address)["components"]}
    assert not used & {"fileexplorer", "datetime", "loginbutton", "interface", "audio", "video", "image", "file"}
    assert "flag" not in ask(f"{address}/gradio_api/info")[2]


def test_no_version_with_a_known_hole_is_allowed():
    """Gradio up to 6.24, CVE-2026-111497; CVE-2025-32434, CVE-2026-24747; CVE-2026-1839, -4372"""
    lines = (Path(app.__file__).parent / "requirements.txt").read_text().splitlines()
    least = {
        line.partition(">=")[0]: tuple(map(int, line.partition(">=")[2].split(",")[0].split("."))) for line in lines
    }
    assert least["gradio"] >= (6, 31) and least["torch"] >= (2, 10) and least["transformers"] >= (5, 3)
    assert tuple(map(int, metadata.version("brotli").split("."))) >= (1, 2, 1)
