"""The repository as a Hugging Face Space: its front matter, and the program started as a Space starts it.

--long also makes the Space's environment from requirements.txt, which takes minutes.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import gradio as gr
import psutil
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from processes import free_port

from rlhf.config import (
    BadInput,
    CompareArguments,
    DemoArguments,
    PPOArguments,
    RewardArguments,
    SweepArguments,
    build,
)
from rlhf.config.recipes import read_recipe
from rlhf.kinds import KINDS
from rlhf.launch import jobs, limits
from rlhf.runs import directory as runs
from rlhf.runs.directory import ACTIVE, Run
from rlhf.ui import train


ROOT = Path(__file__).resolve().parent.parent
HOST = "someone-rlhf-lab.hf.space"
DOMAIN = "rlhf.example.org"
SECRET = "hf_nobody_may_read_this"


def front_matter():
    return yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return {requirement.name: requirement.specifier for requirement in map(Requirement, filter(None, lines))}


# The front matter -------------------------------------------------------------------------------------------------


def test_the_front_matter_names_what_is_tested_here():
    matter = front_matter()
    assert matter["sdk"] == "gradio"
    assert matter["sdk_version"] == metadata.version("gradio"), "Name the version in README.md that is tested."
    assert matter["sdk_version"] in requirements()["gradio"]
    assert (ROOT / matter["app_file"]).is_file()
    assert {matter["colorFrom"], matter["colorTo"]} <= set("red yellow green blue indigo purple pink gray".split())
    assert len(matter["short_description"]) <= 60
    assert matter["suggested_hardware"] == "cpu-basic"
    assert {"rlhf", "ppo"} <= set(matter["tags"])
    assert matter["license"] == "apache-2.0"


def test_everything_that_is_installed_satisfies_the_requirements_and_runs_on_the_spaces_python():
    python = front_matter()["python_version"]
    assert isinstance(python, str)  # 3.10 as a number would be 3.1
    for name, versions in requirements().items():
        assert metadata.version(name) in versions, name
        assert python in SpecifierSet(metadata.metadata(name)["Requires-Python"] or ""), name


# A Space ----------------------------------------------------------------------------------------------------------


class Network:
    """A proxy that leads nowhere and notes who wanted to go out."""

    def __init__(self):
        self.asked = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        while True:
            connection, _ = self._socket.accept()
            self.asked.append(connection.recv(200))
            connection.close()


class Space:
    """The program as it runs on a Space: a copy of the tracked files, two cores, an empty home, no way out."""

    def __init__(self, folder, *command, **environment):
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
        if not tracked:
            pytest.skip("not a git checkout")
        self.folder, self.network = folder, Network()
        for name in tracked:
            (folder / "app" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "app" / name)
        for name in ("home", "work", "tmp"):
            (folder / name).mkdir()
        port = free_port()
        self.address, self.log = f"http://127.0.0.1:{port}", folder / "log"
        out = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), self.network.address)
        self.process = subprocess.Popen(
            [*(command or [sys.executable]), folder / "app" / "app.py"],
            cwd=folder / "work",
            env={
                **out,
                **{"no_proxy": "localhost,127.0.0.1", "NO_PROXY": "localhost,127.0.0.1", "HF_TOKEN": SECRET},
                **{"SYSTEM": "spaces", "SPACE_ID": "someone/rlhf-lab", "SPACE_HOST": f"{HOST},{DOMAIN}"},
                **{"CPU_CORES": "2", "GRADIO_SERVER_PORT": str(port), "PYTHONDONTWRITEBYTECODE": "1"},
                **{"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")},
                "RLHF_RUNS": str(folder / "data"),
                **environment,
            },
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )

    def get(self, path="/", **headers):
        """A page's status and text."""
        try:
            with urllib.request.urlopen(urllib.request.Request(self.address + path, headers=headers)) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def wait(self, seconds=200):
        """Wait until the page is there; returns the space."""
        deadline = time.time() + seconds
        while time.time() < deadline and self.process.poll() is None:
            try:
                self.get()
                return self
            except OSError:
                time.sleep(0.3)
        raise AssertionError(self.log.read_text()[-2000:])

    def visit(self, page=None):
        """Open the page, or open it again, as a browser does; returns what the browser knows then."""
        page = page or {"session": uuid.uuid4().hex, "secret": "", "config": json.loads(self.get("/config")[1])}
        load = next(entry for entry in page["config"]["dependencies"] if entry["targets"][0][1] == "load")
        try:
            _, answer = self._ask(page, load, None, {})
        except OSError as error:
            raise AssertionError(f"{self.process.poll()}\n{self.log.read_text()[-3000:]}") from error
        kept = {part["props"].get("storage_key"): part["id"] for part in page["config"]["components"]}
        return {**page, "secret": answer["data"][load["outputs"].index(kept["rlhf-lab"])]}

    def press(self, page, button, **entered):
        """Press a button, with other values in some fields; returns whether that worked, and the answer as text."""
        parts = {part["props"].get("elem_id"): part["id"] for part in page["config"]["components"]}
        event = next(entry for entry in page["config"]["dependencies"] if [parts[button], "click"] in entry["targets"])
        done, answer = self._ask(page, event, parts[button], entered)
        return done, json.dumps(answer)

    def _ask(self, page, event, trigger, entered):
        parts = {part["id"]: part for part in page["config"]["components"]}
        data = []
        for part in map(parts.get, event["inputs"]):
            name = (part["props"].get("label") or "").replace(" ", "_")
            props = part["props"]
            at_first = props.get("value", props.get("default_value"))
            secret = props.get("storage_key") == "rlhf-lab"
            data.append(page["secret"] if secret else entered.get(name, at_first))
        session, kind = page["session"], {"Content-Type": "application/json"}
        asked = {"data": data, "fn_index": event["id"], "session_hash": session, "trigger_id": trigger}
        url = f"{self.address}/gradio_api/"
        route = "queue/join" if event["queue"] else "run/predict"
        with urllib.request.urlopen(urllib.request.Request(url + route, json.dumps(asked).encode(), kind)) as answer:
            told = json.load(answer)
        if not event["queue"]:
            return True, told
        with urllib.request.urlopen(f"{url}queue/data?session_hash={session}") as lines:
            for line in lines:
                news = json.loads(line.removeprefix(b"data:")) if line.startswith(b"data:") else {}
                if news.get("msg") == "process_completed":
                    return news["success"], news["output"]
        raise AssertionError("no answer")

    def listing(self, name):
        """The files of a folder, with the time of their last change."""
        return {path: path.stat().st_mtime for path in (self.folder / name).rglob("*") if path.is_file()}

    def runs(self):
        return [Run(path) for path in (self.folder / "data").glob("*-*")]

    def close(self):
        for run in self.runs():
            if run.status()["state"] in ACTIVE:
                os.killpg(run.status()["pid"], signal.SIGKILL)
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    space = Space(tmp_path_factory.mktemp("space"))
    space.before = space.listing("app")
    try:
        yield space.wait()
    finally:
        space.close()


def test_a_space_answers_to_its_names_and_to_addresses_in_figures_only(space):
    for name in (HOST, DOMAIN, "localhost:7860", "10.20.1.7:7860", "127.0.0.1"):
        status, text = space.get(Host=name)
        assert status == 200 and "RLHF Lab" in text, name
    for name in ("evil.example", "someone-else.hf.space", f"{HOST}.evil.example", ""):
        assert space.get(Host=name)[0] == 400, name


def test_a_space_says_what_it_forgets_and_offers_models_by_list(space):
    config = json.loads(space.get("/config")[1])
    assert "This Space forgets its runs" in json.dumps(config)
    labels = {part["props"].get("label"): part for part in config["components"]}
    assert [value for _, value in labels["model name or path"]["props"]["choices"]] == list(limits.ALLOWED_MODELS)
    assert labels["model name or path"]["type"] == "dropdown"
    assert "save steps" not in labels


def test_a_space_refuses_other_models_and_too_much_work_whoever_asks(space):
    page = space.visit()
    done, answer = space.press(page, "start", model_name_or_path="/etc")
    assert not done
    done, answer = space.press(page, "start", Episodes="1e6")
    assert done and "Episodes\\u201d is at most 20,480 on this Space, so that others get their turn" in answer
    assert space.runs() == []


def test_a_run_on_a_space_knows_no_secret_and_is_stopped_by_whom_it_belongs_to(space):
    ann = space.visit()
    assert space.visit(ann)["secret"] == ann["secret"]
    space.press(ann, "start", Episodes="2048")
    (run,) = space.runs()
    deadline = time.time() + 200
    while run.status()["state"] == "queued" and time.time() < deadline:
        time.sleep(0.2)
    told = Path(f"/proc/{run.status()['pid']}/environ").read_bytes().split(b"\0")
    assert {b"OMP_NUM_THREADS=2", b"GOMP_SPINCOUNT=10000"} <= set(told)
    assert not any(SECRET.encode() in entry for entry in told)
    bob = space.visit()
    space.press(bob, "start")
    (second,) = (other for other in space.runs() if other.id != run.id)
    assert second.status()["state"] == "waiting"
    assert "A run of yours waits already" in space.press(bob, "start", Episodes="3200")[1]
    assert "Only the browser that started this run" in space.press(space.visit(ann), "stop", Run=second.id)[1]
    assert "left the queue" in space.press(space.visit(bob), "stop", Run=second.id)[1]
    assert "Only the browser that started this run" in space.press(bob, "stop", Run=run.id)[1]
    assert not (run.path / "stop").exists()
    assert "stops after this step" in space.press(space.visit(ann), "stop", Run=run.id)[1]
    while run.status()["state"] in ACTIVE and time.time() < deadline:
        time.sleep(0.2)
    assert run.status()["state"] == "stopped"  # however long a busy machine takes to save
    assert ann["secret"] not in json.dumps(run.status())


def test_a_space_writes_into_its_one_folder_and_asks_nothing_of_the_network(space):
    assert space.listing("app") == space.before
    assert space.listing("work") == space.listing("tmp") == {}
    assert [path for path in space.listing("home") if "huggingface" not in path.parts] == []
    assert space.listing("data")
    assert space.network.asked == []


@pytest.mark.process
@pytest.mark.long
def test_a_clean_environment_from_the_requirements_serves_the_page(tmp_path):
    python = "python" + front_matter()["python_version"]
    if shutil.which(python) is None or subprocess.run([python, "-V"]).returncode:
        python = sys.executable
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    clean = tmp_path / "venv" / "bin" / "python"
    gradio = f"gradio=={front_matter()['sdk_version']}"
    install = [clean, "-m", "pip", "install", "-q", gradio, "-r", ROOT / "requirements.txt"]
    subprocess.run(install, check=True)
    space = Space(tmp_path / "space", clean).wait()
    try:
        assert space.get(Host=HOST)[0] == 200
        done, answer = space.press(space.visit(), "start", Episodes="1e6")
        assert done and "is at most 20,480 on this Space" in answer
    finally:
        space.close()


# ZeroGPU ----------------------------------------------------------------------------------------------------------


class Devices(BaseHTTPRequestHandler):
    """Hugging Face's side of ZeroGPU: grants or refuses a GPU, and notes what it was asked."""

    def do_POST(self):
        asked = urlsplit(self.path)
        self.server.asked.append((asked.path, dict(parse_qsl(asked.query))))
        granted = {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "GPU-1", "allowToken": "token"}
        refused = asked.path == "/schedule" and self.server.refuses
        answer = json.dumps({"left": 0, "wait": 60} if refused else granted).encode()
        self.send_response(429 if refused else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def zero_gpu(tmp_path_factory):
    """A Space whose runs may take 40 seconds of a GPU, and the devices it asks."""
    devices = ThreadingHTTPServer(("127.0.0.1", 0), Devices)
    devices.asked, devices.refuses = [], False
    threading.Thread(target=devices.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{devices.server_port}"
    zero = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": url, "RLHF_GPU_SECONDS": "40"}
    script = ROOT / "tests" / "zero_gpu.py"
    space = Space(tmp_path_factory.mktemp("zero"), sys.executable, script, **zero)
    try:
        yield space.wait(), devices
    finally:
        forks = psutil.Process(space.process.pid).children(recursive=True)
        space.close()
        for fork in forks:  # waits for the next call; on the Space it ends with the container
            with contextlib.suppress(psutil.NoSuchProcess):
                fork.kill()
        devices.shutdown()


def ended(space, seconds=200):
    """The status of a Space's last run, once it is no longer under way, and the processes that had it."""
    run, pids, deadline = max(space.runs(), key=lambda run: run.status()["created"]), [], time.time() + seconds
    while run.status().get("state", "queued") in ACTIVE and time.time() < deadline:  # no status yet, or under way
        pid = run.status().get("pid")
        pids += [pid] if pid not in pids else []
        time.sleep(0.1)
    return run, pids


def test_on_zero_gpu_a_run_is_one_call_that_ends_in_time_and_keeps_what_was_learned(zero_gpu):
    space, devices = zero_gpu
    assert devices.asked[0][0] == "/startup-report"  # a Space that names no call is not served
    page = space.visit()
    assert "40 seconds of GPU at most" in json.dumps(page["config"])
    done, answer = space.press(page, "start")
    assert done, answer
    run, pids = ended(space)
    assert run.status()["state"] == Run(run.path / "reward").status()["state"] == "stopped", space.log.read_text()
    assert (run.path / "reward" / "model" / "model.safetensors").exists()
    assert "Traceback" not in (run.path / "train.log").read_text()
    assert len(pids) == 2 and pids[0] == space.process.pid  # waits in the page, trains in a process of its own
    deadline = time.time() + 30
    while devices.asked[-1][0] != "/release" and time.time() < deadline:
        time.sleep(0.1)
    names = [name for name, _ in devices.asked]
    assert names == ["/startup-report", "/schedule", "/allow", "/release"]
    assert float(devices.asked[1][1]["durationSeconds"]) >= 40 and devices.asked[3][1]["fail"] == "false"


def test_a_run_that_gets_no_gpu_says_why_and_the_page_goes_on(zero_gpu):
    space, devices = zero_gpu
    devices.refuses = True
    done, answer = space.press(space.visit(), "start")
    assert done, answer
    run, _ = ended(space)
    assert run.status()["state"] == "failed"
    assert run.status()["message"].startswith("No GPU for this run: ") and "GPU limit" in run.status()["message"]
    assert space.get()[0] == 200


def test_a_time_of_gpu_that_is_no_number_of_seconds_is_answered_with_a_sentence(monkeypatch):
    for given in ("two minutes", "0", "-5", "1e9x"):
        monkeypatch.setenv("RLHF_GPU_SECONDS", given)
        with pytest.raises(BadInput, match="RLHF_GPU_SECONDS must be a whole number of seconds, more than 20"):
            limits.gpu_seconds()


# What a page allows that strangers use ----------------------------------------------------------------------------


@pytest.fixture
def on_space(root, monkeypatch):
    """As on a Space, in this process; the folder of all runs."""
    monkeypatch.setenv("SPACE_ID", "someone/rlhf-lab")
    return root


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        (
            "ppo",
            {"model_name_or_path": "/etc"},
            "This Space trains everyday, .* run the program yourself for other models",
        ),
        ("ppo", {"model_name_or_path": "../assets/base"}, "This Space trains"),
        ("compare", {"base_model_name_or_path": "someone/pickle"}, "This Space trains"),
        ("ppo", {"dataset_name": "/etc/passwd"}, "This Space trains on everyday or"),
        ("ppo", {"reward_model_path": "/etc"}, "must be a run of this Space"),
        ("ppo", {"reward_model_path": f"{runs.EXAMPLE}/../base"}, "must be a run of this Space"),
        ("compare", {"models": ["best-of-4", "ppo=someone/model"]}, "must be a run of this Space"),
        ("compare", {"prompts_file": "/etc/passwd"}, "prompts_file is not offered"),
        (
            "sweep",
            {"kl_coefs": "1 2 3 4 5 6 7 8 9", "reward_model_path": str(runs.EXAMPLE)},
            "kl_coefs has at most 8 entries",
        ),
        ("demo", {"seeds": 5}, "seeds is at most 4"),
        ("ppo", {"lora_r": 1024}, "lora_r is at most 64"),
        ("demo", read_recipe("gpt2-sentiment"), "This Space trains everyday"),
        ("ppo", {"output_dir": "/etc"}, "output_dir is not offered"),
        ("ppo", {"save_steps": 1}, "save_steps is not offered"),
        ("demo", {"num_train_epochs": 6.0}, "num_train_epochs is at most 5"),
        ("demo", {"reward_max_steps": 10_000}, "reward_max_steps is at most 2,000"),
        (
            "ppo",
            {"per_device_train_batch_size": 4096},
            "at most 128 on this Space, so that it fits into memory",
        ),
        ("ppo", {"response_length": 65}, "response_length is at most 64 .* into everyday.s 128 tokens"),
        (
            "ppo",
            {"model_name_or_path": "openai-community/gpt2", "response_length": 200},
            "response_length is at most 128",
        ),
        ("demo", {"max_length": 129}, "max_length is at most 128"),
    ],
)
def test_what_a_space_does_not_do_is_answered_with_a_sentence_where_runs_start(on_space, kind, settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        jobs.launch(kind, build(KINDS[kind].settings, settings))
    assert not on_space.exists()


def test_a_preview_reads_no_file_of_a_space(on_space):
    assert "This Space trains on everyday or" in train._preview("/etc/passwd", "everyday")
    assert "This Space trains everyday, " in train._preview("everyday", "/etc")


def test_the_defaults_and_the_listed_models_pass_on_a_space(on_space):
    sweep = SweepArguments(reward_model_path=str(runs.EXAMPLE / "reward"))
    for config in (DemoArguments(), RewardArguments(), PPOArguments(), CompareArguments(), sweep):
        limits.check({name: value for name, value in vars(config).items() if value is not None})
    mine = Run(on_space / "reward-20260101-000000-0001")
    mine.path.mkdir(parents=True)
    for name in limits.ALLOWED_MODELS:
        limits.check({"model_name_or_path": name, "reward_model_path": str(mine.path), "models": [f"ppo={mine.path}"]})


def test_on_ones_own_computer_everything_is_allowed(monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    limits.check({"model_name_or_path": "/my/model", "total_episodes": 10**6, "save_steps": 1})
    limits.check_owner({"owner": "somebody"}, "")


@pytest.fixture
def in_class(root, tmp_path, monkeypatch):
    """As in a classroom, with a teacher's folder beside what is none of the class's business; the folder."""
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("RLHF_DATA", str(tmp_path / "given"))
    shutil.copytree(ROOT / "assets" / "base", tmp_path / "given" / "model")
    shutil.copytree(ROOT / "assets" / "base", tmp_path / "private")
    rows = [{"prompt": f"Say {n}.", "chosen": f"{n}!", "rejected": "No."} for n in range(10)]
    for name in ("given/pairs.jsonl", "given/.hidden.jsonl", "exam.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "given"


def test_in_a_classroom_models_and_data_are_those_of_a_space_and_what_the_teacher_gives(in_class):
    mine = {"model_name_or_path": str(in_class / "model"), "dataset_name": str(in_class / "pairs.jsonl")}
    limits.check({**mine, "total_episodes": 10**6})  # a class shares its own computer as it likes
    limits.check({"reward_model_path": str(in_class / "model")})
    assert "10 rows of texts" in train._preview(mine["dataset_name"], mine["model_name_or_path"])
    outside = in_class.parent
    for settings in (
        {"model_name_or_path": str(outside / "private")},
        {"model_name_or_path": f"{in_class}/../private"},
        {"base_model_name_or_path": "someone/model"},
        {"dataset_name": str(outside / "exam.jsonl")},
        {"dataset_name": str(in_class / ".hidden.jsonl")},
        {"reward_model_path": str(outside / "private")},
        {"models": [f"ppo={outside / 'private'}"]},
        {"prompts_file": str(in_class / "pairs.jsonl")},
        {"save_steps": 1},
    ):
        with pytest.raises(BadInput, match="[Tt]his page"):
            limits.check(settings)
    assert "This page trains on" in train._preview(str(outside / "exam.jsonl"), "everyday")
    assert "This page trains everyday," in train._preview("everyday", str(outside / "private"))


def test_in_a_classroom_the_form_lists_what_the_teacher_gives_and_offers_no_recipe(in_class):
    with gr.Blocks():
        tab = train.TrainTab()
    knobs = tab.forms["demo"].knobs
    assert knobs["model_name_or_path"].choices[-1][1] == str(in_class / "model")
    assert [value for _, value in knobs["dataset_name"].choices][-1] == str(in_class / "pairs.jsonl")
    assert "save_steps" not in knobs and not tab.recipe.visible


def test_in_a_classroom_only_ones_own_run_is_stopped(in_class):
    limits.check_owner({"owner": limits.mark("ann")}, "ann")
    for status, visitor in (({"owner": limits.mark("ann")}, "bob"), ({"owner": ""}, ""), ({}, "bob")):
        with pytest.raises(BadInput, match="Only the browser that started this run"):
            limits.check_owner(status, visitor)


def test_the_oldest_ended_runs_give_up_their_models_and_keep_their_curves(on_space):
    ends = {"1": "finished", "2": "running", "3": "finished", "4": "failed", "5": "finished"}
    made = []
    for number, state in ends.items():
        run = Run(on_space / f"demo-2026010{number}-000000-000{number}")
        for folder in ("ppo/model", "ppo/checkpoints/checkpoint-1", "reward/model"):
            (run.path / folder).mkdir(parents=True)
            (run.path / folder / "model.safetensors").write_bytes(bytes(1000))
        run.set_status(state=state)
        run.log({"step": 1})
        made.append(run)
    runs.make_room(11_000, keep=[made[2].path / "reward"])
    weights = [len(list(run.path.rglob("*.safetensors"))) for run in made]
    assert weights == [0, 3, 3, 0, 3]  # the second is under way, the third about to be used
    assert [run.metrics()[0]["step"] for run in made] == [1] * 5
    runs.make_room(11_000)
    assert [len(list(run.path.rglob("*.safetensors"))) for run in made] == weights


def test_what_visitors_upload_costs_nobody_a_model(on_space):
    run = Run(on_space / "demo-20260101-000000-0001")
    (run.path / "model").mkdir(parents=True)
    (run.path / "model" / "model.safetensors").write_bytes(bytes(1000))
    run.set_status(state="finished")
    (runs.page_folder() / "gradio").mkdir()
    (runs.page_folder() / "gradio" / "own.csv").write_bytes(bytes(100_000))
    (on_space / "feedback").mkdir()
    (on_space / "feedback" / "choices.jsonl").write_bytes(bytes(100_000))
    runs.make_room(5_000)
    assert (run.path / "model" / "model.safetensors").exists()


def test_runs_lie_on_the_volume_of_a_space_that_has_one(on_space, monkeypatch, tmp_path):
    monkeypatch.delenv("RLHF_RUNS")
    monkeypatch.setattr(runs, "VOLUME", tmp_path / "none")
    assert runs.runs_root() == Path("runs").resolve()
    monkeypatch.setattr(runs, "VOLUME", tmp_path)
    assert runs.runs_root() == tmp_path / "runs"
    monkeypatch.delenv("SPACE_ID")
    assert runs.runs_root() == Path("runs").resolve()


@pytest.mark.process
def test_a_folder_that_cannot_be_written_is_answered_with_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    environment = {**os.environ, "RLHF_RUNS": str(tmp_path / "file" / "runs")}
    done = subprocess.run([sys.executable, ROOT / "app.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: Nothing can be written to {tmp_path}") and "RLHF_RUNS" in done.stderr
    assert "Traceback" not in done.stderr
