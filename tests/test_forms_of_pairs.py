"""Forms of preference data: answers with scores, ranks or a winner become pairs, and columns may have any name."""

import json
import tempfile
import warnings
from collections import Counter
from itertools import combinations
from pathlib import Path

import pandas
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from worlds import CHATML, chat_model, tokenizer_of

from rlhf.config import BadInput, DemoArguments, build
from rlhf.data.forms import as_pairs
from rlhf.data.load import load_preferences, load_prompts, read_preferences
from rlhf.data.preview import preview, preview_prompts
from rlhf.data.reader import Table, read
from rlhf.data.rows import Unusable
from rlhf.models import resolve
from rlhf.models.loading import load_tokenizer
from rlhf.models.prompts import PromptReader, give_chat_template, question_prompt
from rlhf.reward import gold_margins, label_ceiling


def said(role, content):
    return {"role": role, "content": content}


def write(path, rows):
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        cells = [
            {name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()} for row in rows
        ]
        pandas.DataFrame(cells).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def found(name, **columns):
    """All pairs of a file as (prompt, chosen, rejected), and what is used of it."""
    wanted = {side: columns.get(side, side) for side in ("prompt", "chosen", "rejected")}
    train, held_out, usage = read_preferences(name, columns=wanted)
    return {tuple(pair.values()) for pair in [*train, *held_out]}, usage


# ---- Every form, as the data set that it comes from has it


def two(n, **more):
    return {"prompt": f"{n}?", "response_a": f"a{n}", "response_b": f"b{n}", **more}


FORMS = {
    "arena": lambda n: two(n, model_a="x", winner=["model_a", "model_b", "tie", "tie (bothbad)"][n % 4]),
    "winner": lambda n: two(n, Winner=["A", " b ", "Tie", "both"][n % 4]),
    "named": lambda n: two(n, winner=["response_a", "response_b", "draw", "neither"][n % 4]),
    "scores": lambda n: two(n, score_a=[5, 1, 3, 2][n % 4], score_b=[1, "5", 3, 2.0][n % 4]),
    "ranks": lambda n: two(n, rank_a=[1, 2, 1, 2][n % 4], rank_b=[2, 1, 1, 2][n % 4]),
    "webgpt": lambda n: {
        "prompt": f"{n}?", "answer_0": f"a{n}", "answer_1": f"b{n}",
        "score_0": [0.5, -1.0, 0.0, 0.0][n % 4], "score_1": [-0.5, 1.0, 0.0, 0.0][n % 4],
    },
    "safe-rlhf": lambda n: {
        "prompt": f"{n}?", "response_0": f"a{n}", "response_1": f"b{n}",
        "better_response_id": [0, 1, "tie", "tie"][n % 4],
    },
}  # fmt: skip
"""Of every four rows the first prefers a, the second b, and the others are ties."""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv"])
def test_two_answers_with_a_winner_or_scores_are_pairs_and_ties_are_left_out(tmp_path, form, ending):
    pairs, usage = found(write(tmp_path / f"rows.{ending}", [FORMS[form](n) for n in range(8)]))
    assert pairs == {("0?", "a0", "b0"), ("1?", "b1", "a1"), ("4?", "a4", "b4"), ("5?", "b5", "a5")}
    assert usage.rows == Counter({"a tie": 4}) and "model_a" not in usage.read


def test_whole_conversations_with_a_winner_are_read_up_to_where_they_part(tmp_path):
    def talk(n, answer):
        return [said("user", f"{n}?"), said("assistant", answer)]

    rows = [
        {"conversation_a": talk(n, "So."), "conversation_b": talk(n, "No."), "winner": "model_b"} for n in range(4)
    ]
    name = write(tmp_path / "arena.parquet", rows)
    train, held_out, usage = read_preferences(name)
    assert train[0] == {
        "prompt": [said("user", "1?")],
        "chosen": [said("assistant", "No.")],
        "rejected": [said("assistant", "So.")],
    }
    assert len(train) + len(held_out) == 4 and usage.made == "conversation_a and conversation_b, by winner"
    assert load_prompts(name, "ppo")[0] == [said("user", "0?")]


RANKED = {
    "ultrafeedback": lambda n: {
        "instruction": f"{n}?", "source": "x",
        "completions": [
            {"response": f"{word}{n}", "model": word, "overall_score": score, "annotations": None}
            for word, score in (("low", 1.5), ("high", 8.0), ("middle", 5.0))
        ],
    },
    "nectar": lambda n: {
        "instruction": f"{n}?",
        "answers": [{"answer": f"{word}{n}", "rank": rank} for word, rank in (("low", 3), ("high", 1), ("middle", 2))],
    },
    "distilabel": lambda n: {
        "instruction": f"{n}?", "generations": [f"low{n}", f"high{n}", f"middle{n}"], "ratings": [1, 5, 3],
    },
}  # fmt: skip


@pytest.mark.parametrize("form", RANKED)
@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_list_of_scored_or_ranked_answers_is_every_pair_of_them(tmp_path, form, ending):
    pairs, usage = found(write(tmp_path / f"rows.{ending}", [RANKED[form](n) for n in range(3)]), prompt="instruction")
    assert pairs == {
        (f"{n}?", f"{better}{n}", f"{worse}{n}")
        for n in range(3)
        for better, worse in (("high", "middle"), ("high", "low"), ("middle", "low"))
    }
    assert not usage.rows and usage.read == ["instruction", "chosen", "rejected"]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_rows_of_one_answer_each_are_paired_within_their_prompt(tmp_path, ending):
    """As in HelpSteer2, or in a spreadsheet: a prompt again and again, with another answer and its grade."""
    rows = [
        {"prompt": f"{n}?", "response": f"{word}{n}", "helpfulness": score, "verbosity": 1}
        for word, score in (("low", 0), ("high", 4), ("also low", 0))
        for n in range(3)
    ] + [{"prompt": "alone?", "response": "x", "helpfulness": 1, "verbosity": 1}]
    pairs, usage = found(write(tmp_path / f"rows.{ending}", rows))
    assert pairs == {(f"{n}?", f"high{n}", f"{low}{n}") for n in range(3) for low in ("low", "also low")}
    assert usage.rows == Counter({"a tie": 3, "only one answer to the prompt": 1}) and usage.columns == ["verbosity"]


def test_answers_to_one_question_under_different_system_prompts_are_not_compared(tmp_path):
    rows = [
        {"system": system, "prompt": f"{n}?", "response": f"{word}{n}", "score": score}
        for system, word, score in (("Be kind.", "kind", 2), ("Be kind.", "rude", 1), ("Be short.", "So.", 3))
        for n in range(2)
    ]
    train, held_out, usage = read_preferences(write(tmp_path / "rows.jsonl", rows))
    assert {pair["chosen"][0]["content"] for pair in [*train, *held_out]} == {"kind0", "kind1"}
    assert usage.rows == Counter({"only one answer to the prompt": 2})


def test_an_answer_that_has_no_score_and_a_winner_that_is_nobody_are_counted(tmp_path):
    rows = [two(n, score_a=2, score_b=1) for n in range(4)] + [two(5, score_a=1, score_b="N/A")]
    assert found(write(tmp_path / "s.jsonl", rows))[1].rows == Counter({"an answer without a score": 1})
    rows = [two(n, winner="a") for n in range(4)] + [two(5, winner="c"), two(6, winner=None)]
    usage = found(write(tmp_path / "w.jsonl", rows))[1]
    assert usage.rows == Counter({"a winner that is neither of the two answers": 2})
    rows = [{"prompt": f"{n}?", "responses": ["x", "y"], "scores": [2, 1][: 2 - n // 3]} for n in range(4)]
    assert found(write(tmp_path / "l.jsonl", rows))[1].rows == Counter({"not as many scores as answers": 1})


def test_ties_alone_are_refused_in_one_sentence(tmp_path):
    name = write(tmp_path / "ties.csv", [two(n, winner="tie") for n in range(3)])
    with pytest.raises(BadInput, match=r"Only 0 of 3 pairs of .*ties.csv can be used, and pair 1 cannot \(a tie\)"):
        load_preferences(name)


def test_pairs_whose_order_is_told_are_left_as_they_are(tmp_path):
    rows = [
        {"prompt": f"{n}?", "chosen": "So.", "rejected": "No.", "score_chosen": 1, "response": "x", "score": 3}
        for n in range(2)
    ]
    pairs, usage = found(write(tmp_path / "pairs.jsonl", rows))
    assert pairs == {("0?", "So.", "No."), ("1?", "So.", "No.")} and usage.made == ""


def test_prompts_beside_single_answers_are_prompts_all_the_same(tmp_path):
    rows = [{"prompt": f"{n}?", "response": "So.", "score": 1} for n in range(5)]
    with pytest.warns(UserWarning, match="not used: response, score"):
        assert load_prompts(write(tmp_path / "log.jsonl", rows), "ppo") == ["0?", "1?", "2?", "3?"]


# ---- Whatever the answers and their scores are

words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=5)
scored = st.lists(st.tuples(words, st.integers(0, 3)), max_size=5, unique_by=lambda answer: answer[0])
quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def expected(groups):
    pairs, ties = set(), 0
    for n, answers in enumerate(groups):
        for (one, high), (other, low) in combinations(answers, 2):
            ties += high == low
            if high != low:
                pairs.add((f"{n}?", *((one, other) if high > low else (other, one))))
    return pairs, ties


@quick
@given(groups=st.lists(scored, min_size=1, max_size=4), form=st.sampled_from(["dicts", "ranks", "lists", "rows"]))
def test_every_form_holds_the_same_pairs(groups, form):
    rows = []
    for n, answers in enumerate(groups):
        if form == "dicts":
            rows.append({"prompt": f"{n}?", "completions": [{"text": t, "score": s} for t, s in answers]})
        elif form == "ranks":
            rows.append({"prompt": f"{n}?", "answers": [{"answer": t, "rank": -s} for t, s in answers]})
        elif form == "lists":
            lists = {"responses": [t for t, _ in answers], "scores": [s for _, s in answers]}
            rows.append({"prompt": f"{n}?", **lists})
        else:
            rows += [{"prompt": f"{n}?", "response": t, "score": s} for t, s in answers]
    table = Table(list(rows[0]) if rows else [], rows)
    pairs, made = as_pairs(table)
    if not any(groups):
        assert not made or not any(isinstance(row, dict) for row in pairs.rows)
        return
    usable = [row for row in pairs.rows if isinstance(row, dict)]
    wanted, ties = expected(groups)
    assert made and {(row["prompt"], row["chosen"], row["rejected"]) for row in usable} == wanted
    faults = Counter(str(row) for row in pairs.rows if isinstance(row, Unusable))
    assert faults["a tie"] == ties and len(usable) == len(wanted)


@quick
@given(
    answers=st.lists(st.tuples(words, words, st.sampled_from(["a", "b", "tie"])), min_size=1, max_size=6),
    ending=st.sampled_from(["jsonl", "csv", "parquet"]),
)
def test_a_winner_is_read_back_from_every_kind_of_file(answers, ending):
    rows = [
        {"prompt": f"{n}?", "response_a": a, "response_b": b, "winner": winner}
        for n, (a, b, winner) in enumerate(answers)
    ]
    with tempfile.TemporaryDirectory() as folder:
        table = read(write(Path(folder) / f"rows.{ending}", rows))["train"]
    made = [(row["chosen"], row["rejected"]) if isinstance(row, dict) else str(row) for row in as_pairs(table)[0].rows]
    orders = {"a": lambda a, b: (a, b), "b": lambda a, b: (b, a), "tie": lambda a, b: "a tie"}
    if ending != "csv":  # pandas writes NA and NaN of its own
        assert made == [orders[winner](a, b) for a, b, winner in answers]
    assert len(made) == len(answers)


# ---- Columns by any name


def test_columns_are_read_by_the_names_that_are_given(tmp_path):
    rows = [{"Question": f"{n}?", "good": "So.", "bad": "No.", "prompt": "other"} for n in range(20)]
    name = write(tmp_path / "own.csv", rows)
    pairs, usage = found(name, prompt="question", chosen="good", rejected="BAD")
    assert pairs == {(f"{n}?", "So.", "No.") for n in range(20)}
    assert usage.read == ["Question", "good", "bad"] and usage.columns == ["prompt"]
    with pytest.warns(UserWarning, match="not used: prompt"):
        assert load_prompts(name, "ppo", "question", answers=("good", "bad"))[:2] == ["0?", "1?"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": "question"}, "has no column question; it needs the prompt_column question, and has prompt, good"),
        ({"chosen": "best"}, "has no column best, rejected; it needs best and rejected, with"),
        ({}, "has no column chosen, rejected; it needs chosen and rejected, with"),
        ({"chosen": "good", "rejected": "worst"}, "has no column worst; it needs good and worst, with"),
    ],
)
def test_a_column_that_is_not_there_is_answered_with_those_that_are(tmp_path, columns, message):
    name = write(tmp_path / "own.jsonl", [{"prompt": f"{n}?", "good": "So.", "bad": "No."} for n in range(4)])
    with pytest.raises(BadInput) as caught:
        found(name, **columns)
    assert message in str(caught.value) and "and has prompt, good, bad" in str(caught.value)


def test_prompts_in_a_column_of_another_meaning_are_read_as_prompts(tmp_path):
    """SHP calls its prompts `history`, and says by scores which of two answers people liked better."""
    rows = [
        {"history": f"{n}?", "human_ref_A": "So.", "human_ref_B": "No.", "labels": n % 2,
         "score_A": 5 if n % 2 else 1, "score_B": 2}
        for n in range(20)
    ]  # fmt: skip
    pairs, _ = found(write(tmp_path / "shp.jsonl", rows), prompt="history")
    assert pairs == {(f"{n}?", *(("So.", "No.") if n % 2 else ("No.", "So."))) for n in range(20)}


def test_a_demo_hands_the_columns_to_all_its_steps():
    given = {"prompt_column": "q", "chosen_column": "good", "rejected_column": "bad", "as_conversations": True}
    demo = build(DemoArguments, given)
    steps = (demo.reward_arguments(None), demo.ppo_arguments(None, None), demo.compare_arguments(None, None, None))
    for step in steps:
        assert step.columns == {"prompt": "q", "chosen": "good", "rejected": "bad"} and step.as_conversations


# ---- A spreadsheet's texts for an instruction-tuned model


def test_texts_become_what_a_user_says_and_an_assistant_answers(tmp_path):
    rows = [{"prompt": f" Say {n}.\n", "chosen": f"{n}!", "rejected": "No.", "margin": n} for n in range(20)]
    name = write(tmp_path / "own.csv", rows)
    train, held_out = load_preferences(name, as_conversations=True)
    assert len(train) + len(held_out) == 20
    first = {
        "prompt": [said("user", "Say 1.")],
        "chosen": [said("assistant", "1!")],
        "rejected": [said("assistant", "No.")],
    }
    assert train[0] == {**first, "margin": 1.0}
    assert load_prompts(name, "ppo", as_conversations=True)[1] == [said("user", "Say 1.")]
    assert load_prompts(name, "ppo", words=1, as_conversations=True) == [[said("user", "Say")]]
    turns = "\n\nHuman: Hi.\n\nAssistant: Hello!\n\nHuman: Say {n}.\n\nAssistant:"
    transcripts = [{"chosen": f"{turns.format(n=n)} {n}!", "rejected": f"{turns.format(n=n)} No."} for n in range(20)]
    pair = load_preferences(write(tmp_path / "hh.jsonl", transcripts), as_conversations=True)[0][0]
    assert pair["prompt"] == [said("user", "Hi."), said("assistant", "Hello!"), said("user", "Say 1.")]
    assert (pair["chosen"], pair["rejected"]) == ([said("assistant", "1!")], [said("assistant", "No.")])
    talks = write(tmp_path / "talks.jsonl", [{"prompt": [said("user", f"Say {n}.")]} for n in range(20)])
    assert load_prompts(talks, "ppo", as_conversations=True) == load_prompts(talks, "ppo")
    assert (
        load_prompts("everyday", "test", as_conversations=True)[0][0]["content"]
        == load_prompts("everyday", "test")[0].strip()
    )


def test_training_reads_a_text_as_chat_asks_it(tmp_path):
    chat_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    rows = [{"prompt": f"Say {n}.\n", "chosen": f"{n}!", "rejected": "No."} for n in range(20)]
    train, _ = load_preferences(write(tmp_path / "own.csv", rows), as_conversations=True)
    asked = question_prompt(tokenizer, "Say 1.", 100).ids
    reader = PromptReader(tokenizer, None)
    (read,) = reader.pairs([train[0]["prompt"]], [train[0]["chosen"]])
    assert reader.read(train[0]["prompt"]).ids == asked == list(read.ids[: len(asked)])
    assert tokenizer.decode(read.ids).endswith("<|im_start|>assistant\n1!<|im_end|>")


def test_it_is_said_that_texts_are_read_without_a_template(tmp_path):
    tokenizer = tokenizer_of(40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        give_chat_template(tokenizer, ["t4"])
        tokenizer.chat_template = CHATML
        give_chat_template(tokenizer, ["<bos> t4"])  # written with a template before
        give_chat_template(tokenizer, [[said("user", "t4")]])
        # The embedded world's questions end as its template ends them.
        give_chat_template(load_tokenizer(resolve("everyday", "policy")), load_prompts("everyday", "ppo"))
    with pytest.warns(UserWarning, match="with as_conversations each is what a user says"):
        give_chat_template(tokenizer, ["t4"])


def test_commands_take_a_spreadsheet_as_conversations(command, tmp_path):
    """Also the embedded world's questions, whose rubric then grades what the model is told and answers."""
    rows = [{"prompt": f"What is {n}?", "chosen": "So it is.", "rejected": "No."} for n in range(30)]
    write(tmp_path / "own.csv", rows)
    shown = command("preview", "--dataset_name", "own.csv", "--as_conversations", "true")
    assert shown.returncode == 0 and "rows of conversations" in shown.stdout
    small = ("--max_steps", 1, "--per_device_train_batch_size", 4, "--as_conversations", "true")
    done = command("reward", "--dataset_name", "own.csv", *small, "--output_dir", "judge")
    assert done.returncode == 0, done.stderr
    ppo = (
        "--reward_model_path",
        "judge",
        "--response_length",
        4,
        "--ceiling_samples",
        0,
        "--num_sample_generations",
        1,
    )
    done = command("ppo", "--dataset_name", "own.csv", *small, *ppo, "--output_dir", "out")
    assert done.returncode == 0, done.stderr
    sample = json.loads((tmp_path / "out" / "samples.jsonl").read_text().splitlines()[0])
    assert sample["prompt"] in {row["prompt"] for row in rows}
    held_out = load_preferences("everyday", as_conversations=True)[1]
    assert label_ceiling(gold_margins(held_out)) > 0.9


def test_commands_take_the_columns(command, tmp_path):
    rows = [{"q": f"What is {n}?\n", "good": "So.", "bad": "No."} for n in range(24)]
    given = (
        "--dataset_name",
        write(tmp_path / "own.csv", rows),
        "--chosen_column",
        "good",
        "--rejected_column",
        "bad",
    )
    said = command("preview", *given, "--prompt_column", "q")
    assert said.returncode == 0 and "columns that are used: q, good, bad" in said.stdout
    small = ("--max_steps", 1, "--per_device_train_batch_size", 4, "--output_dir", "out")
    done = command("reward", *given, "--prompt_column", "q", *small)
    assert done.returncode == 0, done.stderr
    refused = command("dpo", *given, "--prompt_column", "question", *small[:-1], "never")
    assert (
        refused.returncode == 2 and "has no column question" in refused.stderr and "and has q, good" in refused.stderr
    )
    assert not (tmp_path / "never").exists()


def test_a_preview_says_of_what_the_pairs_were_made_and_how_many_were_ties(tmp_path):
    shown = preview(write(tmp_path / "rows.jsonl", [FORMS["arena"](n) for n in range(8)]))
    assert (shown.rows, shown.dropped, shown.made) == (8, {"a tie": 4}, "response_a and response_b, by winner")
    assert shown.unused == ["model_a"]


def test_prompts_alone_have_a_preview_too(tmp_path):
    shown = preview_prompts(write(tmp_path / "own.csv", [{"prompt": f"What is {n}?"} for n in range(10)]))
    assert (shown.train, shown.held_out, shown.first[0]) == (8, 2, {"prompt": "What is 0?"})
    assert shown.characters["prompt"]["longest"] == 10 and shown.tokens is None
