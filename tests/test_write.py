"""What the program writes: numbers as words, and documents that no data can break."""

import json
import re
import shutil

import pytest
from markdown_it import MarkdownIt

from rlhf import words
from rlhf.compare.table import Writer, read_rows
from rlhf.config import BadInput
from rlhf.runs.directory import EXAMPLE
from rlhf.write.report import write_report
from rlhf.write.tables import comparison_table


HOSTILE = "a | b\\| \\ c\r\n\n## {{ config }} {% if %} `code | *bold* _it_ ~~no~~ <b>x</b> &amp; [l](u) ![i](u) $x$ |"


def cells(text):
    """The texts of the cells of all tables of a Markdown document, row by row."""
    rows = []
    for token in MarkdownIt().enable(["table", "strikethrough"]).parse(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and token.level > 3:
            assert all(child.type in ("text", "text_special", "code_inline") for child in token.children), (
                token.content
            )
            rows[-1].append("".join(child.content for child in token.children))
    return rows


def test_numbers_have_one_form():
    estimate = {"value": -0.1264, "ci_low": -0.2, "ci_high": 0.0011}
    assert words.number(-0.0001) == "0.000" and words.number(-4.26, 1) == "\N{MINUS SIGN}4.3"
    assert words.signed(0.346) == "+0.35" and words.signed(-0.001) == "+0.00"
    assert words.percent(0.43) == "43 %" and words.percent(0.9375, 1) == "93.8 %"
    assert words.count(10240) == "10,240"
    assert words.interval(estimate, 2) == "\N{MINUS SIGN}0.13 [\N{MINUS SIGN}0.20, 0.00]"
    assert words.interval(estimate, 2, words.signed) == "\N{MINUS SIGN}0.13 [\N{MINUS SIGN}0.20, +0.00]"
    assert words.interval({"value": 0.5, "ci_low": 0.4, "ci_high": 0.6}, 0, words.percent) == "50 % [40 %, 60 %]"
    assert list(map(words.setting, (None, True, 1e-5, 1.0, 7, "eos"))) == ["none", "true", "1e-05", "1", "7", "eos"]


def test_a_cell_shows_any_text_as_it_is():
    row = cells(f"| a | b |\n|---|---|\n| {words.cell(HOSTILE)} | {words.cell('')} |\n")[1]
    assert row == [" ".join(HOSTILE.split()), ""]


def test_the_table_of_a_comparison_sets_long_names_apart_and_knows_missing_numbers():
    summary = json.loads((EXAMPLE / "summary.json").read_text())
    test = summary["splits"]["test"]
    test["models"] = {"base": test["models"]["base"], "a-model-with-a-long-name": test["models"]["ppo"]}
    test["against_base"] = {"a-model-with-a-long-name": test["against_base"]["ppo"]}
    test["against_base"]["a-model-with-a-long-name"]["score"]["detectable"] = None  # of a single prompt
    table = comparison_table({"splits": {"test": test | {"seeds": {}}}})
    columns = [re.split(" {2,}", line.strip()) for line in table.splitlines()[1:8]]
    assert columns[0][1:] == ["base", "a-model-with-a-long-name"] and set(map(len, columns)) == {3}
    assert len({len(line) for line in table.splitlines()[1:8]}) == 1
    assert "smallest detectable gain (80 % power): none" in table


@pytest.fixture
def demo(tmp_path):
    """A copy of what a report reads of the example run."""
    left_out = shutil.ignore_patterns("model", "samples.jsonl", "compare")
    return shutil.copytree(EXAMPLE, tmp_path / "demo", ignore=left_out)


def rewrite(demo, change_summary, change_row):
    """Change a run's summary and every row of its scores."""
    summary = json.loads((demo / "summary.json").read_text())
    change_summary(summary)
    (demo / "summary.json").write_text(json.dumps(summary))
    rows = list(read_rows(demo / "scores.csv"))
    with Writer(demo / "scores.csv") as file:
        for row in rows:
            change_row(row)
            file.write([row | {"ended": str(bool(row["ended"]))}])


@pytest.mark.process
def test_no_prompt_and_no_answer_breaks_the_report(demo, tmp_path):
    first = next(read_rows(demo / "scores.csv"))["prompt"]

    def change_summary(summary):
        summary["reward_model"]["worst"][0] |= {"prompt": HOSTILE, "chosen": HOSTILE, "rejected": HOSTILE}

    def change_row(row):
        if row["prompt"] == first:
            row |= {"prompt": HOSTILE, "response": HOSTILE}

    rewrite(demo, change_summary, change_row)
    text = write_report(demo, tmp_path / "REPORT.md", demo / "sweep", demo / "methods").read_text()
    rows, plain = cells(text), " ".join(HOSTILE.split())
    assert [plain, plain, plain, "\N{MINUS SIGN}4.8"] in rows
    [answers] = [row for row in rows if row[0] == plain and len(row) == 3]
    assert all(re.fullmatch(re.escape(plain) + r" \(\S+\)", answer) for answer in answers[1:])
    original = (EXAMPLE.parent.parent / "REPORT.md").read_text()
    headings = re.compile("^#.*", re.MULTILINE)
    assert headings.findall(text) == headings.findall(original)
    assert list(map(len, rows)) == list(map(len, cells(original)))


@pytest.mark.process
def test_data_without_a_gold_score_have_a_report_too(demo, tmp_path):
    def change_summary(summary):
        del summary["splits"]["unseen"]
        summary["reward_model"] |= {"label_ceiling": None, "rubric_agreement": None}
        test = summary["splits"]["test"]
        for seeds in test["seeds"].values():
            seeds["gold"] = None
        for model in test["models"].values():
            model["gold_mean"] = None
        for against in test["against_base"].values():
            against["gold"] = None
            against["share"]["gold"] = None
            for wins in against.get("best_of", {}).values():
                wins.pop("gold")

    rewrite(demo, change_summary, lambda row: row.update(gold=None))
    methods = json.loads((demo / "methods" / "summary.json").read_text())
    change_summary(methods)
    (demo / "methods" / "summary.json").write_text(json.dumps(methods))
    config = json.loads((demo / "config.json").read_text())
    (demo / "config.json").write_text(json.dumps(config | {"dataset_name": "me/pairs"}))
    sweep = json.loads((demo / "sweep" / "sweep.json").read_text())
    sweep |= {"fit": None, "points": [point | {"gold": None} for point in sweep["points"]]}
    (demo / "sweep" / "sweep.json").write_text(json.dumps(sweep))
    text = write_report(demo, tmp_path / "REPORT.md", demo / "sweep", demo / "methods").read_text()
    assert "- Preferences: `me/pairs`." in text and "these data have no gold score" in text
    assert "rubric" not in text and "annotators are simulated" not in text
    assert not any("gold" in cell for row in cells(text) for cell in row)
    assert any(row[0] == "rloo" and len(row) == 6 for row in cells(text))
    sweeps = ["model (a checkpoint's name ends with its update)", "KL, nats per response", "gain in score"]
    assert [*sweeps, "share of the possible score"] in cells(text)


def test_a_report_needs_a_run_that_trained_its_own_reward_model(demo, tmp_path):
    rewrite(demo, lambda summary: summary["seconds"].pop("reward"), lambda row: None)
    with pytest.raises(BadInput, match="no finished demo run with its own reward model"):
        write_report(demo, tmp_path / "REPORT.md", demo / "sweep", demo / "methods")
