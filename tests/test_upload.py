"""A person's own file in the Train tab: what is taken, what is said of it, and where a run keeps it."""

import gzip
import json
import os
import urllib.request
import zipfile

import gradio as gr
import pytest
from datasets import Dataset
from processes import chromium, serving_here

from rlhf.commands import reward
from rlhf.config import BadInput, CompareArguments, RewardArguments, build
from rlhf.launch import jobs, limits
from rlhf.launch.start import _compared, start_run
from rlhf.runs.directory import Run
from rlhf.ui import comparison_form, live
from rlhf.ui.train import TrainTab, _preview
from rlhf.write import export


ROWS = [
    {"prompt": f"How do I cook {n} eggs?\n", "chosen": f"Boil them {n} minutes.", "rejected": "No."} for n in range(24)
]


def csv(path, names=("prompt", "chosen", "rejected"), rows=ROWS):
    lines = [",".join(f'"{cell}"' for cell in row.values()) for row in rows]
    path.write_text("\n".join([",".join(names), *lines]))
    return path


@pytest.fixture(scope="module")
def tab():
    with gr.Blocks():
        return TrainTab()


def upload(tab, *files, mode="demo", **columns):
    """What the page shows after these files were uploaded, one after the other."""
    own = tab.own
    models = {form.knobs["model_name_or_path"]: "everyday" for form in tab.forms.values()}
    values = {own.files: {}, tab.mode: mode, **{column: name for name, column in own.columns.items()}, **models}
    for file in files:
        shown = own._uploaded({**values, own.upload: str(file)})
        values[own.files] = shown[own.files]
    if columns:
        chosen = {own.columns[name]: column for name, column in columns.items()}
        shown = own._look({**values, **chosen})
    return shown, {**values, **{key: value for key, value in shown.items() if key in values}}


def data_of(tab, shown):
    """Kind -> what its form names as its data now, for the forms that have changed."""
    knobs = {kind: form.knobs["dataset_name"] for kind, form in tab.forms.items()}
    return {kind: getattr(shown[knob], "value", shown[knob]) for kind, knob in knobs.items() if knob in shown}


def test_pairs_are_shown_at_once_and_named_in_every_form(tab, tmp_path):
    shown, values = upload(tab, csv(tmp_path / "own.csv"))
    said = shown[tab.own.shown]
    assert "24 rows of texts: 21 to train on, 3 held out" in said and "<dd" in said and "tokens, in all" in said
    assert "own.csv" in said and str(tmp_path) not in said
    assert data_of(tab, shown) == dict.fromkeys(tab.forms, "own.csv")
    assert tab.own.file_of("own.csv", values) == tmp_path / "own.csv"
    assert tab.own.file_of("everyday", values) is None and tab.own.file_of("other.csv", values) is None


@pytest.mark.parametrize("ending", ["tsv", "json", "jsonl", "parquet", "jsonl.gz", "csv.gz"])
def test_every_kind_of_file_is_taken(tab, tmp_path, ending):
    file = tmp_path / f"own.{ending}"
    text = json.dumps(ROWS)
    if ending == "parquet":
        Dataset.from_list(ROWS).to_parquet(file)
    elif ending == "tsv":
        file.write_text(
            "prompt\tchosen\trejected\n" + "\n".join("\t".join(row.values()).replace("\n", " ") for row in ROWS)
        )
    elif ending == "csv.gz":
        file.write_bytes(gzip.compress(csv(tmp_path / "plain.csv").read_bytes()))
    elif ending.endswith(".gz"):
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(text)
    assert "24 rows of texts" in upload(tab, file)[0][tab.own.shown]


def test_prompts_alone_are_named_where_prompts_are_enough(tab, tmp_path):
    shown, _ = upload(tab, csv(tmp_path / "q.csv", ["prompt"], [{"prompt": f"How {n}?"} for n in range(10)]))
    assert "prompts alone" in shown[tab.own.shown] and "10 rows of texts: 8 to train on, 2" in shown[tab.own.shown]
    assert data_of(tab, shown) == {"ppo": "q.csv", "sweep": "q.csv"}


def test_columns_of_other_names_can_be_picked_and_go_into_the_run(tab, tmp_path):
    file = csv(tmp_path / "own.csv", ["question", "good", "bad"])
    shown, _ = upload(tab, file)
    assert "own.csv has no column chosen, rejected" in shown[tab.own.shown] and data_of(tab, shown) == {}
    assert shown[tab.own.columns["chosen_column"]].choices == [(name, name) for name in ("question", "good", "bad")]
    names = {"prompt_column": "question", "chosen_column": "good", "rejected_column": "bad"}
    shown, values = upload(tab, file, **names)
    assert "columns that are used: question, good, bad" in shown[tab.own.shown]
    assert data_of(tab, shown)["reward"] == "own.csv"
    values |= {tab.own.columns[name]: column for name, column in names.items()}
    assert tab.own.chosen_columns(values) == names
    # The next file begins with the usual names.
    shown, _ = upload(tab, file, csv(tmp_path / "next.csv"))
    assert "24 rows" in shown[tab.own.shown] and shown[tab.own.columns["chosen_column"]].value == "chosen"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("own.xlsx", b"PK\x03\x04", "own.xlsx cannot be read: give a file ending in .jsonl, .json, .csv,"),
        ("own.csv", b"", "own.csv could not be read as csv (it is empty); check its contents."),
        ("own.jsonl", b'{"prompt": ', "own.jsonl could not be read as json"),
        ("own.csv.gz", b"no gzip", "own.csv.gz could not be unpacked"),
        ("own.parquet", b"no table", "own.parquet could not be unpacked"),
        ("own.json", b'[{"text": "So."}]', "own.json has no column chosen, rejected"),
        ("own.csv", b"prompt,chosen,rejected\nHow?,a,b\n", "own.csv has pairs for one prompt only"),
    ],
)
def test_a_file_that_cannot_be_used_is_answered_with_one_sentence_without_its_path(
    tab, tmp_path, name, content, message
):
    (tmp_path / name).write_bytes(content)
    shown, _ = upload(tab, tmp_path / name)
    said = shown[tab.own.shown]
    assert message in said and said.count("<p") == 1 and str(tmp_path) not in said and "\n" not in said
    assert data_of(tab, shown) == {}


def test_what_is_too_large_or_would_be_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "UPLOAD", 10_000)
    csv(tmp_path / "long.csv", rows=ROWS * 20)
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"0" * 1_000_000))
    Dataset.from_list([{"prompt": "a" * 1000}] * 1000).to_parquet(tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 10_000
    for name in ("long.csv", "bomb.csv.gz", "bomb.parquet"):
        with pytest.raises(BadInput, match=f"{name} is too large: at most 0 MB"):
            limits.check_upload(tmp_path / name)


def test_a_space_takes_two_megabytes_of_a_visitors_own_and_no_path(tab, tmp_path, monkeypatch, root):
    monkeypatch.setenv("SPACE_ID", "someone/lab")
    with gr.Blocks():
        there = TrainTab()
    shown, values = upload(there, csv(tmp_path / "own.csv"))
    assert shown[there.forms["demo"].knobs["dataset_name"]].choices[-1] == ("own.csv", "own.csv")
    assert limits.most_upload() == 2_000_000
    csv(tmp_path / "long.csv", rows=ROWS * 2000)
    assert "long.csv is too large: at most 2 MB" in upload(there, tmp_path / "long.csv")[0][there.own.shown]
    # Whoever knows the path of another's file comes no nearer to it.
    with pytest.raises(BadInput, match="This Space trains on everyday or"):
        start_run("reward", {"dataset_name": str(tmp_path / "own.csv")})
    assert "This Space trains on" in _preview(str(tmp_path / "own.csv"), "everyday")
    assert "24 rows" in _preview("own.csv", "everyday", files=values[there.own.files])


def test_a_file_that_is_gone_is_asked_for_again(tab, tmp_path):
    _, values = upload(tab, csv(tmp_path / "own.csv"))
    (tmp_path / "own.csv").unlink()
    with pytest.raises(BadInput, match="own.csv was kept for an hour; upload it again"):
        tab.own.file_of("own.csv", values)


def test_a_run_keeps_a_copy_and_calls_it_by_its_name(tmp_path, root, monkeypatch):
    monkeypatch.setattr(jobs, "_begin", lambda run: run.set_status(state="queued", pid=os.getpid()))
    names = {"prompt_column": "question", "chosen_column": "good", "rejected_column": "bad"}
    file = csv(tmp_path / "own.csv", names.values())
    settings = {"dataset_name": "own.csv", "max_steps": "1", "per_device_train_batch_size": "4", **names}
    run = start_run("reward", settings, upload=file)
    file.unlink()
    kept = run.path / "uploaded" / "own.csv"
    assert kept.is_file() and run.config()["dataset_name"] == str(kept)
    config = {name: value for name, value in run.config().items() if name != "kind"}
    reward(build(RewardArguments, config))
    assert run.status()["state"] == "finished"
    card = (run.path / "model" / "README.md").read_text()
    assert "own.csv" in card and str(run.path) not in card
    assert "--dataset_name own.csv" in export.as_command(run) and "dataset_name='own.csv'" in export.as_python(run)
    shown = {row["name"]: row["values"][0] for row in live.beside({"run": run.id})["rows"]}
    assert shown["dataset name"] == "own.csv"
    with zipfile.ZipFile(export.write_zip(run, tmp_path / "run.zip")) as packed:
        assert not any("own.csv" in name for name in packed.namelist())


def test_a_run_is_compared_on_what_it_was_trained_on_also_on_a_space(root, monkeypatch):
    run = Run.create(root / "demo-20260101-000000-0001", "demo", {"dataset_name": "", "chosen_column": "good"})
    data = str(run.path / "uploaded" / "own.csv")
    for path, kind in ((run.path, "demo"), (run.path / "ppo", "ppo"), (run.path / "reward", "reward")):
        (path / "model").mkdir(parents=True)
        (path / "model" / "config.json").write_text("{}")
        made = {"kind": kind, "dataset_name": data, "chosen_column": "good", "model_name_or_path": "everyday"}
        (path / "config.json").write_text(json.dumps(made))
    compared = build(CompareArguments, _compared([run.id]))
    assert compared.dataset_name == data and compared.chosen_column == "good"
    monkeypatch.setenv("SPACE_ID", "someone/lab")
    limits.check(vars(compared))
    with pytest.raises(BadInput, match="This Space trains on"):
        limits.check({**vars(compared), "models": [f"ppo={root / 'demo-20260101-000000-0002'}"]})


@pytest.mark.parametrize("name", ["q.tsv", "q.json", "q.parquet", "q.csv.gz"])
def test_questions_of_a_comparison_are_taken_from_every_kind_of_file(tmp_path, name):
    rows = [{"prompt": "Why?"}, {"prompt": "How?"}]
    if name == "q.parquet":
        Dataset.from_list(rows).to_parquet(tmp_path / name)
    else:
        text = json.dumps(rows) if name == "q.json" else "prompt\nWhy?\nHow?\n"
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert comparison_form._read_upload(str(tmp_path / name)) == ("Why?\nHow?", "")


# Over the network ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUNS", str(folder / "runs"))
        patch.setattr("tempfile.tempdir", str(folder))
        with serving_here() as address:
            yield address


def test_a_file_is_uploaded_looked_at_and_trained_on(address, tmp_path, monkeypatch):
    started = []

    def launch(kind, settings, visitor, upload):
        started.append((kind, settings.chosen_column, upload.name, upload.read_text()))
        raise BadInput("That is all.")

    monkeypatch.setattr(jobs, "launch", launch)
    file = csv(tmp_path / "own.csv", ["prompt", "good", "bad"])
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.goto(f"{address}?run=example")
        page.wait_for_selector(".verdict")
        page.get_by_role("button", name="Show settings").click()
        page.locator("#own-data button").first.click()
        with page.expect_file_chooser() as chooser:
            page.locator("#upload").click()
        chooser.value.set_files(str(file))
        page.locator("#own-preview", has_text="holds prompts alone").wait_for()
        for name, column in (("chosen_column", "good"), ("rejected_column", "bad")):
            page.locator(f"#{name} input").click()
            page.get_by_role("option", name=column).click()
            page.get_by_role("listbox").wait_for(state="hidden")  # the next list has the same options
        page.locator("#own-preview dd", has_text="Boil them").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page.locator("#start").click()
        page.locator("#train-note .note", has_text="That is all.").wait_for()
    assert started == [("demo", "good", "own.csv", file.read_text())]


def test_the_largest_upload_is_ten_times_what_it_is_on_a_space(address, monkeypatch):
    def sent(size):
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="own.csv"\r\n\r\n'
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        body = head + b"a" * size + b"\r\n--x--\r\n"
        try:
            urllib.request.urlopen(urllib.request.Request(f"{address}/gradio_api/upload", body, kind)).read()
        except OSError:  # refused with 413, or hung up on
            return False
        return True

    assert sent(3_000_000) and not sent(20_020_000)
    monkeypatch.setenv("SPACE_ID", "someone/lab")
    assert sent(1_990_000) and not sent(3_000_000)


def test_no_file_of_the_server_is_taken_for_an_upload(address):
    with urllib.request.urlopen(f"{address}/config") as answer:
        config = json.load(answer)
    parts = {part["id"]: part for part in config["components"]}
    ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
    event = next(entry for entry in config["dependencies"] if [ids["upload"], "upload"] in entry["targets"])
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    data = [file if part == ids["upload"] else parts[part]["props"].get("value") for part in event["inputs"]]
    asked = {"data": data, "fn_index": event["id"], "session_hash": "thief", "trigger_id": ids["upload"]}
    join = urllib.request.Request(
        f"{address}/gradio_api/queue/join", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(join).read()
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash=thief") as lines:
        news = [json.loads(line.removeprefix(b"data:")) for line in lines if line.startswith(b"data:")]
    done = next(entry for entry in news if entry["msg"] == "process_completed")
    assert not done["success"] and "root:" not in json.dumps(done)
