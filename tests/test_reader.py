"""The reader of files, folders and the Hub: what is written in a supported form is read back, whatever its form."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import ROOT
from worlds import chat_model

from rlhf.compare.table import COLUMNS, Writer
from rlhf.config import BadInput
from rlhf.data.load import load_preferences, load_prompts, read_questions
from rlhf.data.preview import preview
from rlhf.data.reader import read


def said(role, content):
    return {"role": role, "content": content}


def pairs(count=20, **more):
    return [{"prompt": f"What is {n}?", "chosen": "So.", "rejected": "No.", **more} for n in range(count)]


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def table(path, rows, **settings):
    with path.open("w", newline="", encoding=settings.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, list(rows[0]), **settings)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def all_pairs(name):
    train, held_out = load_preferences(str(name))
    return sorted([*train, *held_out], key=str)


# ---- What is written is read back


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
cell = st.one_of(text, st.sampled_from(["007", "NA", "None", "nan", "1e5", "true", "-", "\u2028", 'a "b", c;\td|e']))
columns = st.lists(st.sampled_from(["prompt", "Chosen", "rejected ", "other"]), min_size=2, max_size=4, unique=True)
grid = columns.flatmap(
    lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, cell)), min_size=1, max_size=5)
)
quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(
    rows=grid,
    separator=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]),
    ending=st.sampled_from([".csv", ".CSV", ".tsv", ".csv.gz", ".Csv.GZ"]),
)
def test_a_table_is_read_back(rows, separator, end, encoding, ending):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode(encoding)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a [b]{ending}"
        path.write_bytes(gzip.compress(data) if ending.lower().endswith(".gz") else data)
        found = read(str(path))["train"]
    assert found.columns == list(rows[0]) and found.rows == rows


value = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), text), lambda inside: st.lists(inside, max_size=3), max_leaves=5
)


@quick
@given(
    rows=st.lists(st.dictionaries(text, value, max_size=4), min_size=1, max_size=5),
    form=st.sampled_from(["lines", "list", "indented", "one after the other"]),
    ascii_only=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"]),
    ending=st.sampled_from([".jsonl", ".json", ".JSON", ".jsonl.gz"]),
)
def test_json_is_read_back(rows, form, ascii_only, encoding, ending):
    dump = {"ensure_ascii": ascii_only, "indent": 2 if form == "indented" else None}
    whole = json.dumps(rows, **dump) if form == "list" else "\n".join(json.dumps(row, **dump) for row in rows) + "\r\n"
    data = whole.encode(encoding)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{ending}"
        path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
        assert read(str(path))["train"].rows == rows


@settings(quick, max_examples=10)
@given(rows=grid, form=st.sampled_from(["file", "gz", "folder", "saved", "saved splits"]))
def test_parquet_and_saved_data_sets_are_read_back(rows, form):
    with tempfile.TemporaryDirectory() as folder:
        path, data = Path(folder) / "a=1 [v2]", Dataset.from_list(rows)
        if form.startswith("saved"):
            (data if form == "saved" else DatasetDict({"train": data, "test": data})).save_to_disk(path)
        else:
            path.mkdir()
            data.to_parquet(path / "rows.parquet")
            if form == "gz":
                (path / "rows.parquet").write_bytes(gzip.compress((path / "rows.parquet").read_bytes()))
                path = (path / "rows.parquet").rename(path / "rows.Parquet.gz")
        found = read(str(path / "rows.parquet" if form == "file" else path))
        assert [list(table.rows) for table in found.values()] == [rows] * (2 if form == "saved splits" else 1)


@quick
@given(
    questions=st.lists(text.map(str.strip).filter(lambda line: line and not set(line) & set("\r\n")), min_size=2),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_questions_are_read_back_line_by_line(questions, end, encoding):
    distinct = list(dict.fromkeys(questions))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "QUESTIONS.TXT"
        path.write_bytes(end.join(["What is it?", *questions]).encode(encoding))
        if len({"What is it?", *distinct}) > 1:
            assert read_questions(str(path)) == list(dict.fromkeys(["What is it?", *distinct]))


# ---- Cases


def test_b22_text_in_a_table_stays_the_text_it_is(tmp_path):
    rows = [{"prompt": f"{n}?", "chosen": f"00{n}", "rejected": f"{n}0"} for n in range(12)]
    assert all_pairs(table(tmp_path / "DATA.CSV", rows)) == sorted(rows, key=str)
    Dataset.from_list([{**row, "chosen": 7, "rejected": 8} for row in rows]).to_parquet(tmp_path / "n.parquet")
    assert {row["chosen"] for row in all_pairs(tmp_path / "n.parquet")} == {"7"}


@pytest.mark.parametrize("written", [json.dumps, str, lambda messages: str(np.array(messages))])
def test_b22_conversations_in_a_table_are_parsed(tmp_path, written):
    start = [said("user", 'What\'s "it"?\nReally?'), said("assistant", "It."), said("user", "Why?")]
    rows = [
        {
            "chosen": written([*start, said("assistant", f"So {n}.")]),
            "rejected": written([*start, said("assistant", "No")]),
        }
        for n in range(2)
    ] + [
        {
            "chosen": written([said("user", "x"), said("assistant", "a")]),
            "rejected": written([said("user", "x"), said("assistant", "b")]),
        }
    ]
    pandas.DataFrame(rows).to_csv(tmp_path / "pairs.csv")
    with pytest.warns(UserWarning, match="one without a name"):
        found = all_pairs(tmp_path / "pairs.csv")
    assert [said("assistant", "So 1.")] in [row["chosen"] for row in found] and start in [
        row["prompt"] for row in found
    ]


def test_b22_a_torn_conversation_is_named_and_an_answer_of_json_stays_a_text(tmp_path):
    rows = pairs()
    rows[0]["chosen"] = "[{'role': 'assistant', 'content': 'So"
    rows[1]["chosen"] = '{"content": "So"}'
    with pytest.warns(UserWarning, match=r"a conversation as text that cannot be parsed \(1\)"):
        assert '{"content": "So"}' in [row["chosen"] for row in all_pairs(table(tmp_path / "t.csv", rows))]


def test_b23_b24_a_folder_of_tables_is_read_as_the_files(tmp_path):
    rows = [{**row, "chosen": ("None", "NA", "null")[n % 3], "n": n} for n, row in enumerate(pairs(40))]
    rows[-1]["n"] = "changed"
    table(tmp_path / "a.csv", rows[:20])
    table(tmp_path / "b.csv", rows[20:])
    with pytest.warns(UserWarning, match="not used: n"):
        assert len(all_pairs(tmp_path)) == 40


@pytest.mark.parametrize("name", ["data [v2]/texts.jsonl", "T.JSONL", "b {x}*?/a.json", "C:x/p.jsonl"])
def test_b25_b28_any_path_is_read(tmp_path, name):
    assert len(all_pairs(jsonl(tmp_path / name, pairs()))) == 20
    assert len(all_pairs((tmp_path / name).parent)) == 20


def test_b27_configurations_are_named_after_a_colon(tmp_path):
    jsonl(tmp_path / "x" / "train.jsonl", pairs(5))
    jsonl(tmp_path / "y" / "one.jsonl", pairs(7))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: x\n  data_files: x/*.jsonl\n- config_name: y\n  data_dir: y\n---\n"
    )
    assert (len(all_pairs(f"{tmp_path}:x")), len(all_pairs(f"{tmp_path}:y"))) == (5, 7)
    for name in (tmp_path, f"{tmp_path}:z"):
        with pytest.raises(BadInput, match="configurations of .* are x, y; name one after a colon"):
            load_preferences(str(name))


def test_b27_configurations_of_the_hub_too(tmp_path, monkeypatch):
    for name, answer in (("x", "So."), ("y", "Yes.")):
        jsonl(tmp_path / "set" / name / "train.jsonl", pairs(chosen=answer))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/train.jsonl\n" for name in "xy")
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name in "xy":
        datasets.load_dataset(str(tmp_path / "set"), name, cache_dir=str(tmp_path / "made"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "made" / "set").rename(tmp_path / "cache" / "someone___set")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert all_pairs("someone/set:y")[0]["chosen"] == "Yes."
    with pytest.raises(BadInput, match="x, y.*name a configuration as someone/set:NAME"):
        load_preferences("someone/set")


def test_b29_windows_1252_is_decoded_with_a_word_and_what_is_no_text_is_refused(tmp_path):
    questions = ["Où est-ce – là ?", "Schön?"]
    (tmp_path / "q.txt").write_bytes("\r\n".join(questions).encode("cp1252"))
    with pytest.warns(UserWarning, match="read as Windows-1252"):
        assert read_questions(str(tmp_path / "q.txt")) == questions
    with pytest.warns(UserWarning, match="read as Windows-1252"):
        assert all_pairs(table(tmp_path / "t.csv", pairs(chosen="é"), encoding="cp1252"))[0]["chosen"] == "é"
    (tmp_path / "torn.txt").write_bytes("Grüße\nSchöne\nÄ".encode() + b"\xff")
    with pytest.raises(BadInput, match="torn.txt is in UTF-8 with 1 broken bytes, the first in line 3"):
        read_questions(str(tmp_path / "torn.txt"))
    for name, data in (("png.txt", b"\x89PNG\r\n\x1a\n\0\0"), ("noise.txt", np.random.default_rng(0).bytes(2000))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadInput, match=f"{name} is not a text file"):
            read_questions(str(tmp_path / name))


def test_b30_only_a_line_break_ends_a_question(tmp_path):
    (tmp_path / "q.txt").write_text("one\u2028two\u0085three\ffour\nfive", encoding="utf-8")
    assert read_questions(str(tmp_path / "q.txt")) == ["one\u2028two\u0085three\ffour", "five"]


def test_b31_long_cells_of_a_comparison_are_read_back(tmp_path):
    row = {**dict.fromkeys(COLUMNS, 1.0), "prompt": "p", "response": "x" * 200_000, "ended": True}
    with Writer(tmp_path / "scores.csv") as file:
        file.write([row])
    # As the page reads them, without the reader of data sets, which allows such cells as well.
    code = """if True:
        import pathlib, sys
        from rlhf.compare.table import read_rows
        print(len(next(read_rows(pathlib.Path(sys.argv[1])))["response"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "scores.csv"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "200000\n", done.stderr[-2000:]


def test_b32_a_cache_that_cannot_be_written_is_named_and_needed_for_the_hub_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    assert len(all_pairs(jsonl(tmp_path / "pairs.jsonl", pairs()))) == 20
    with pytest.raises(BadInput, match="cache .* cannot be written .*set HF_HOME"):
        load_preferences("trl-lib/ultrafeedback_binarized")


def test_u03_a_file_replaced_under_the_same_time_stamp_is_read_anew(tmp_path):
    for answer in ("Old", "New"):
        name = jsonl(tmp_path / "pairs.jsonl", pairs(chosen=answer))
        os.utime(name, (1, 1))
        assert {row["chosen"] for row in all_pairs(name)} == {answer}


def test_u11_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    jsonl(tmp_path / "pairs.jsonl", pairs())
    assert len(all_pairs("~/pairs.jsonl")) == 20 and len(read_questions("~/pairs.jsonl")) == 20


def test_u12_a_prompt_of_null_beside_whole_dialogues_is_what_they_begin_with(tmp_path):
    rows = [
        {
            "prompt": None,
            "chosen": [said("user", f"{n}?"), said("assistant", "So.")],
            "rejected": [said("user", f"{n}?"), said("assistant", "No.")],
        }
        for n in range(4)
    ]
    assert all_pairs(jsonl(tmp_path / "pairs.jsonl", rows))[0]["prompt"] == [said("user", "0?")]


def test_u13_an_empty_test_split_counts_as_none(tmp_path):
    rows = Dataset.from_list(pairs())
    DatasetDict({"train": rows, "test": rows.select([])}).save_to_disk(tmp_path / "saved")
    train, held_out = load_preferences(str(tmp_path / "saved"))
    assert (len(train), len(held_out)) == (18, 2)


def test_b10_the_prompts_of_a_column_are_the_texts_as_they_stand(tmp_path):
    code = "def f(x):\n    return  x\n"
    talk = [said("user", "Hi"), said("assistant", "Hello.")]
    name = jsonl(tmp_path / "p.jsonl", [{"Code": code + str(n), "talk": talk} for n in range(2)])
    with pytest.warns(UserWarning, match="not used: talk"):
        assert load_prompts(name, "ppo", "code") == [code + "0", code + "1"]
        assert load_prompts(name, "ppo", "code", 3) == ["def f(x):\n    return"]
    with pytest.warns(UserWarning, match="not used: Code"):
        assert load_prompts(name, "ppo", "talk") == [talk]
        with pytest.raises(BadInput, match="holds conversations, of which prompt_words takes no part"):
            load_prompts(name, "ppo", "talk", 3)


def test_b20_u06_parts_are_joined_sharegpt_is_converted_and_an_image_is_named(tmp_path):
    parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "now?"}]
    rows = [
        {
            "conversations": [{"from": "human", "value": f"{n}?"}],
            "chosen": {"from": "gpt", "value": "So."},
            "rejected": {"from": "gpt", "value": "No."},
        }
        for n in range(3)
    ]
    found = all_pairs(jsonl(tmp_path / "sharegpt.jsonl", rows))
    assert found[0] == {
        "prompt": [said("user", "0?")],
        "chosen": [said("assistant", "So.")],
        "rejected": [said("assistant", "No.")],
    }
    rows = [{"prompt": [said("user", [*parts, {"type": "text", "text": str(n)}])]} for n in range(4)]
    rows[2]["prompt"][0]["content"].append({"type": "image_url", "image_url": {"url": "x"}})
    with pytest.warns(UserWarning, match=r"left out: image, not text \(1\)"):
        assert load_prompts(jsonl(tmp_path / "parts.jsonl", rows), "ppo")[0] == [said("user", "What now?0")]


def test_b21_tool_calls_are_left_out_by_their_name(tmp_path):
    rows = pairs()
    rows[0]["chosen"] = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]}]
    rows[0]["rejected"] = [said("assistant", "No.")]
    rows[1]["tools"] = [{"name": "f"}]
    with pytest.warns(UserWarning) as told:
        load_preferences(jsonl(tmp_path / "p.jsonl", rows))
    said_so = " ".join(str(warning.message) for warning in told)
    assert "a tool call, not text (1)" in said_so and "not used: tools" in said_so


def test_system_and_history_become_messages_before_the_prompt(tmp_path):
    rows = pairs(system="Be short.", history=[["Hi", "Hello."]])
    rows[0]["system"], rows[1]["history"] = None, None
    found = all_pairs(jsonl(tmp_path / "p.jsonl", rows))
    before = [said("system", "Be short."), said("user", "Hi"), said("assistant", "Hello.")]
    assert [*before, said("user", "What is 9?")] in [row["prompt"] for row in found]
    assert [*before[1:], said("user", "What is 0?")] in [row["prompt"] for row in found]
    assert len(found) == 20 and found[-1]["chosen"] == [said("assistant", "So.")]
    assert all_pairs(jsonl(tmp_path / "e.jsonl", pairs(system="")))[0]["prompt"] == "What is 0?"


@pytest.mark.parametrize(
    "history", [5, [5], [None], ["Hi", "Hello."], {"Hi": "Hello."}, [["Hi"]], [["Hi", "Hello.", "Why?"]]]
)
def test_a_history_of_another_shape_is_left_out_under_its_name(tmp_path, history):
    """Letters of a text were taken for messages, and a third of three forgotten."""
    name = jsonl(tmp_path / "p.jsonl", [*pairs(history=[["Hi", "Hello."]]), *pairs(1, history=history)])
    with pytest.warns(UserWarning, match=r"1 of 21 rows .* left out: history not .* \(1\)"):
        load_preferences(name)


def test_b19_a_margin_is_used_as_trls_loss_uses_it_and_a_preview_names_what_is_not(command, tmp_path):
    chat_model(tmp_path / "tiny")
    name = jsonl(tmp_path / "pairs.jsonl", pairs(margin=30, Rating=5))
    found = preview(name)
    assert found.unused == ["Rating"] and found.margin
    assert load_preferences(name, margins=False)[0].column_names == ["prompt", "chosen", "rejected"]
    small = ("--max_steps", 1, "--per_device_train_batch_size", 4, "--eval_steps", 1, "--logging_steps", 1)
    done = command("reward", "--model_name_or_path", "tiny", "--dataset_name", name, *small, "--output_dir", "out")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("not used: Rating") == 1
    lines = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    assert any(20 < line.get("loss", 0) < 40 for line in lines)  # -log sigmoid(0 - 30) = 30
    done = command("preview", "--dataset_name", name)
    assert "columns that are not used: Rating" in done.stdout and "margin: " in done.stdout


def test_an_upload_that_cannot_be_read_shows_no_path(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": }\n')
    with pytest.raises(BadInput) as caught:
        read_questions(str(tmp_path / "bad.jsonl"))
    assert str(tmp_path) not in str(caught.value) and "bad.jsonl could not be read as json" in str(caught.value)
    assert "line 2" in str(caught.value)


def test_rows_that_are_broken_are_counted_under_their_reason(tmp_path):
    (tmp_path / "t.csv").write_text("prompt,chosen,rejected\n" + "a,b,c\nd,e,f\n" * 9 + "g,h,i,j\n")
    with pytest.warns(UserWarning, match=r"more cells than columns \(1\)"):
        load_preferences(str(tmp_path / "t.csv"))
    rows = pairs()
    rows[0]["chosen"] = "\ud83d"
    with pytest.warns(UserWarning, match=r"half a character \(1\)"):
        load_preferences(jsonl(tmp_path / "p.jsonl", rows))


def test_ten_thousand_pairs_are_read_in_a_moment(tmp_path):
    name = jsonl(tmp_path / "p.jsonl", pairs(10_000))
    start = time.process_time()
    load_preferences(name)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("name", ["a" * 5000, "\0", "~nobody-here/x.jsonl", "a:b", "folder/", "x.jsonl:y", ""])
def test_any_name_gets_a_sentence(name):
    with pytest.raises(BadInput):
        load_preferences(name)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inside),
    max_leaves=6,
)
names = st.sampled_from("prompt chosen rejected messages conversations system history margin scores winner".split())
odd_rows = st.lists(st.dictionaries(names, json_values, max_size=4) | json_values, min_size=1, max_size=6)


def whole_files(folder):
    """A good file of each kind, as bytes by its ending."""
    rows = pairs(12)
    Dataset.from_list(rows).to_parquet(folder / "p.parquet")
    made = {".jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(), ".json": json.dumps(rows).encode()}
    table(folder / "t.csv", rows)
    table(folder / "t.tsv", rows, delimiter="\t")
    made |= {path.suffix: path.read_bytes() for path in folder.iterdir()}
    return made | {f"{ending}.gz": gzip.compress(data) for ending, data in made.items()}


def rows_or_one_sentence(file, data):
    """Whatever is in a file: pairs, or one sentence without its path."""
    file.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            train, held_out = load_preferences(str(file))
        except BadInput as error:
            assert "\n" not in str(error) and 20 < len(str(error)) < 1000, str(error)
        else:
            assert len(train) + len(held_out) > 0 and {"prompt", "chosen", "rejected"} <= set(train.column_names)


def test_damaged_and_arbitrary_bytes_give_rows_or_one_sentence(tmp_path_factory, long, tries):
    count = 5000 if long else 150
    wholes, folder = whole_files(tmp_path_factory.mktemp("whole")), tmp_path_factory.mktemp("damaged")

    @settings(quick, max_examples=count, derandomize=not long)
    @given(
        ending=st.sampled_from(sorted(wholes)), at=st.integers(0, 10**6), put=st.binary(max_size=40), cut=st.booleans()
    )
    def damaged(ending, at, put, cut):
        whole = wholes[ending]
        at %= len(whole)
        rows_or_one_sentence(folder / f"p{ending}", whole[:at] + put + (b"" if cut else whole[at + len(put) :]))

    damaged()
    tries(count)


def test_rows_of_any_json_give_rows_or_one_sentence(tmp_path_factory, long, tries):
    count, folder = 5000 if long else 150, tmp_path_factory.mktemp("odd")

    @settings(quick, max_examples=count, derandomize=not long)
    @given(rows=odd_rows, good=st.booleans())
    def odd(rows, good):
        rows = [*(pairs(3) if good else []), *rows]
        rows_or_one_sentence(folder / "p.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    odd()
    tries(count)


@pytest.mark.parametrize("before", ["\n\r\n", "sep=;\r\n", "\n \nsep=;\n\n"])
def test_empty_lines_and_a_named_separator_may_stand_before_a_table(tmp_path, before):
    file = tmp_path / "pairs.csv"
    file.write_text(f"{before};prompt;chosen;rejected\n1;How?;So, yes.;No.\n2;Why?;So.;No.\n", newline="")
    table = read(str(file))["train"]
    assert table.columns == ["", "prompt", "chosen", "rejected"]
    assert [row["chosen"] for row in table.rows] == ["So, yes.", "So."]


def test_two_columns_of_one_name_are_told_apart_by_nobody(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("prompt,chosen,rejected,prompt\nHow?,So.,No.,Why?\n")
    with pytest.raises(BadInput, match="two columns are called prompt; rename one of them"):
        read(str(file))
