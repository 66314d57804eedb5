"""Preferences and prompts: every shape that TRL documents, from every kind of file, and the order they are read in."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset
from worlds import chat_model

from rlhf.config import BadInput
from rlhf.data.load import fingerprint, load_preferences, load_prompts
from rlhf.data.preview import preview
from rlhf.models.packed import shuffled_batches_by_length
from rlhf.models.prompts import readable


ROOT = Path(__file__).resolve().parent.parent
HH = ROOT.parent / "shared" / "data" / "hh-rlhf-harmless-sample.jsonl.gz"
"""Real people's preferences, in strong language: never printed."""


def said(role, content):
    return {"role": role, "content": content}


def explicit(number):
    return {"prompt": f"What is {number}?\n", "chosen": "So.", "rejected": "No."}


def explicit_conversation(number):
    prompt = [said("system", "Be short."), said("user", f"What is {number}?")]
    return {"prompt": prompt, "chosen": [said("assistant", "So.")], "rejected": [said("assistant", "No.")]}


def implicit(number):
    return {"chosen": f"Number {number} is good.", "rejected": f"Number {number} is great."}


def transcript(number):
    start = f"\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: {number}?\n\nAssistant:"
    return {"chosen": f"{start} I say so.", "rejected": f"{start} I say no."}


def implicit_conversation(number):
    start = [said("user", f"What is {number}?")]
    return {"chosen": [*start, said("assistant", "So.")], "rejected": [*start, said("assistant", "No.")]}


def ultrafeedback(number):
    return {**implicit_conversation(number), "score_chosen": 8.5, "score_rejected": 5.0}


def prompt_beside_conversations(number):
    return {
        "prompt": f"What is {number}?",
        "prompt_id": "f0",
        **ultrafeedback(number),
        "messages": [said("user", "x")],
    }


SHAPES = {
    explicit: ("What is 7?\n", "So.", "No."),
    explicit_conversation: tuple(explicit_conversation(7).values()),
    implicit: ("Number 7 is", " good.", " great."),
    transcript: (transcript(7)["chosen"].removesuffix(" I say so."), " I say so.", " I say no."),
    **dict.fromkeys(
        (implicit_conversation, ultrafeedback, prompt_beside_conversations),
        ([said("user", "What is 7?")], [said("assistant", "So.")], [said("assistant", "No.")]),
    ),
}
"""Each shape, and prompt, chosen and rejected of its pair number 7."""


def write(path, rows):
    if path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(path)
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "csv", "parquet"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_pairs_of_every_shape_come_out_with_their_prompt(tmp_path, shape, ending):
    if ending == "csv" and not isinstance(SHAPES[shape][0], str):
        pytest.skip("a table has no conversations")
    file = write(tmp_path / f"pairs.{ending}", [shape(number) for number in range(20)])
    train, held_out = load_preferences(file)
    pairs = [tuple(row.values()) for part in (train, held_out) for row in part]
    assert train.column_names == ["prompt", "chosen", "rejected"] and len(pairs) == 20
    assert pairs.count(SHAPES[shape]) == 1
    assert not {readable(prompt) for prompt in train["prompt"]} & {readable(prompt) for prompt in held_out["prompt"]}
    prompts = load_prompts(file, "ppo") + load_prompts(file, "test")
    assert len(prompts) == 20 and SHAPES[shape][0] in prompts


def test_where_dialogues_part_within_a_word_the_prompt_ends_before_it(tmp_path):
    pairs = [
        ("The sky is blue.", "The sky is black."),
        ("The sky, blue", "The sky is blue"),
        ("Is it?\nYes", "Is it?\nYe"),
    ]
    file = write(tmp_path / "pairs.jsonl", [{"chosen": chosen, "rejected": rejected} for chosen, rejected in pairs])
    train, held_out = load_preferences(file)
    rows = [*train, *held_out]
    assert {row["prompt"] for row in rows} == {"The sky is", "The sky", "Is it?\n"}
    assert {(row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]) for row in rows} == set(pairs)


def test_dialogues_that_part_in_a_later_turn_share_the_turns_up_to_the_users(tmp_path):
    start = [said("user", "Hi"), said("assistant", "Hello."), said("user", "Why?"), said("assistant", "So.")]
    rows = [
        {"chosen": [*start, said("user", f"Thanks {n}")], "rejected": [*start, said("user", f"No {n}")]}
        for n in range(3)
    ]
    rows.append(implicit_conversation(1))
    train, held_out = load_preferences(write(tmp_path / "pairs.jsonl", rows))
    found = next(row for row in [*train, *held_out] if len(row["prompt"]) > 1)
    assert found["prompt"] == start[:3] and found["chosen"][0] == start[3] and len(found["chosen"]) == 2


def test_a_few_bad_pairs_are_left_out_and_counted_by_what_is_wrong(tmp_path):
    rows = [explicit(number) for number in range(20)]
    rows[3]["chosen"], rows[4]["chosen"], rows[5]["rejected"], rows[6]["prompt"] = " ", None, "So.", ""
    with pytest.warns(
        UserWarning, match=r"4 of 20 rows of .* left out: empty answer \(2\), chosen equals rejected \(1\)"
    ):
        train, held_out = load_preferences(write(tmp_path / "pairs.jsonl", rows))
    assert len(train) + len(held_out) == 16
    rows = [implicit_conversation(number) for number in range(20)]
    rows[3]["rejected"][0], rows[4]["chosen"][1] = said("user", "Another question"), said("assistant", None)
    with pytest.warns(UserWarning, match=r"no common prompt \(1\), not text \(1\)"):
        load_preferences(write(tmp_path / "pairs.parquet", rows))


def test_a_text_that_looks_like_nothing_stays_a_text_in_a_table(tmp_path):
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\nIs it?,NA,None\nAnd now?,None,nan\n")
    train, held_out = load_preferences(str(tmp_path / "pairs.csv"))
    assert {row["chosen"] for row in [*train, *held_out]} == {"NA", "None"}


@pytest.mark.parametrize("names", [("train", "test"), ("train_prefs", "test_prefs"), ("train", "validation")])
def test_a_split_to_judge_by_is_used_where_there_is_one(tmp_path, names):
    for start, name in enumerate(names):
        write(tmp_path / f"{name}.jsonl", [explicit(number) for number in range(100 * start, 100 * start + 5)])
    readme = "".join(f"  - split: {name}\n    path: {name}.jsonl\n" for name in ("other", *names)[1:])
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{readme}---\n")
    train, held_out = load_preferences(str(tmp_path))
    assert (len(train), len(held_out)) == (5, 5) and held_out[0] == explicit(100)
    assert load_prompts(str(tmp_path), "ppo") == [explicit(number)["prompt"] for number in range(5)]
    assert load_prompts(str(tmp_path), "test")[0] == "What is 100?\n"


def test_prompts_alone_and_messages_are_prompts_too(tmp_path):
    texts = write(tmp_path / "texts.jsonl", [{"prompt": f"{number}?"} for number in [*range(10), 3]])
    assert load_prompts(texts, "ppo") == [f"{number}?" for number in range(8)]
    assert load_prompts(texts, "test") == ["8?", "9?"] and load_prompts(texts, "unseen") == []
    turns = [said("user", "Hi"), said("assistant", "Hello."), said("user", "Why?"), said("assistant", "So.")]
    alone = write(tmp_path / "alone.parquet", [{"prompt": turns[:3]}, {"prompt": turns[:1]}])
    assert load_prompts(alone, "ppo") == [turns[:3], turns[:1]]
    messages = write(
        tmp_path / "messages.jsonl", [{"messages": turns}, {"messages": turns[:2]}, {"messages": turns[1:2]}]
    )
    with pytest.warns(UserWarning, match=r"1 of 3 rows"):
        assert load_prompts(messages, "ppo") == [turns[:3], turns[:1]]


@pytest.fixture
def fetched(tmp_path):
    """A cache of data sets that holds one of the Hub's, as it was fetched before."""
    source = tmp_path / "ultrafeedback_binarized"
    source.mkdir()
    write(source / "train.parquet", [ultrafeedback(number) for number in range(10)])
    write(source / "test.parquet", [ultrafeedback(number) for number in range(10, 13)])
    datasets.load_dataset(str(source), cache_dir=str(tmp_path / "made"))
    shutil.move(
        tmp_path / "made" / "ultrafeedback_binarized", tmp_path / "cache" / "trl-lib___ultrafeedback_binarized"
    )
    return tmp_path / "cache"


def test_a_data_set_of_the_hub_is_found_by_name_as_it_was_fetched_before(fetched, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", fetched)
    train, held_out = load_preferences("trl-lib/ultrafeedback_binarized")
    assert (len(train), len(held_out), train[0]["prompt"]) == (10, 3, [said("user", "What is 0?")])


@pytest.mark.process
def test_a_hub_that_is_silent_is_not_asked_again_and_again(fetched):
    code = (
        "from rlhf.data import load_preferences\n"
        "train, held_out = load_preferences('trl-lib/ultrafeedback_binarized')\n"
        "print(len(train), len(held_out), train[0]['prompt'])"
    )
    silent = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_DATASETS_CACHE": str(fetched)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **silent}, capture_output=True, text=True
    )
    assert done.stdout.strip() == f"10 3 {[said('user', 'What is 0?')]}", done.stderr[-2000:]
    assert "Retrying" not in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", "", "could not be read as json"),
        ("torn.jsonl", '{"prompt": "How?", \n', "could not be read as json"),
        ("torn.parquet", "x", "could not be read as parquet"),
        ("plain.jsonl.gz", "x", "could not be read as json"),
        ("header.csv", "prompt,chosen,rejected\n", "could not be read as csv"),
        ("column.csv", "prompt,chosen\na,b\n", "has no column rejected; it needs chosen and rejected"),
        ("blank.csv", "prompt,chosen,rejected\na,1,\n", "Only 0 of 1 rows of"),
        ("equal.csv", "prompt,chosen,rejected\na,b,b\n", "row 1 cannot (chosen equals rejected)"),
        ("one.csv", "prompt,chosen,rejected\na,b,c\na,d,e\n", "has pairs for one prompt only"),
        ("missing.csv", None, "There is no file"),
        ("missing.txt", None, "neither a file ending in"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_gets_one_sentence(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(BadInput) as caught:
        load_preferences(str(tmp_path / name))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_data_without_prompts_get_one_sentence(tmp_path):
    with pytest.raises(BadInput, match="has no column prompt; it needs prompt, or messages, or chosen and rejected"):
        load_prompts(write(tmp_path / "text.jsonl", [{"text": "So."}]), "ppo")


def test_a_preview_counts_measures_and_shows(command, tmp_path):
    rows = [explicit_conversation(number) for number in range(30)]
    rows[3]["chosen"] = rows[3]["rejected"]
    found = preview(write(tmp_path / "pairs.jsonl", rows), "everyday")
    assert (found.rows, found.train + found.held_out, found.dropped) == (30, 29, {"chosen equals rejected": 1})
    assert found.conversational and len(found.first) == 3
    assert (
        found.first[0]["prompt"].startswith("system: Be short.\n\nuser: What is") and found.first[0]["chosen"] == "So."
    )
    assert found.characters["rejected"] == dict.fromkeys(found.characters["prompt"], 3)
    assert 0 < found.tokens["shortest"] <= found.tokens["median"] <= found.tokens["longest"] < 60
    done = command("preview", "--dataset_name", "pairs.jsonl", "--model_name_or_path", "everyday")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "30 rows of conversations" in done.stdout and "left out, chosen equals rejected: 1" in done.stdout
    assert "Pair 3" in done.stdout and "longer text of a pair, tokens" in done.stdout


@pytest.mark.skipif(not HH.exists(), reason="the sample of HH-RLHF is not here")
def test_hh_rlhf_loads_with_its_prompts_and_trains(command, tmp_path):
    with pytest.warns(UserWarning, match="2 of 600 rows"):
        train, held_out = load_preferences(str(HH))
    rows = [*train, *held_out]
    assert len(rows) == 598 and len(held_out) == 60
    assert all(row["prompt"].endswith("\n\nAssistant:") and row["prompt"].startswith("\n\nHuman:") for row in rows)
    original = {(row["chosen"], row["rejected"]) for row in map(json.loads, gzip.open(HH, "rt"))}
    assert {(row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]) for row in rows} <= original
    small = ("--max_steps", 2, "--per_device_train_batch_size", 4, "--eval_steps", 2)
    done = command("reward", "--dataset_name", HH, "--output_dir", "out", *small)
    assert done.returncode == 0, done.stderr[-500:]
    assert "were left out: longer than 128 tokens" in done.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["reward_model"]["loss"]["value"] > 0


@pytest.mark.parametrize("template", [True, False], ids=["chat_template", "plain"])
def test_conversations_train_a_reward_model_and_a_policy_and_are_compared(command, tmp_path, template):
    chat_model(tmp_path / "tiny", template)
    rows = [explicit_conversation(number) for number in range(20)]
    rows[5]["prompt"][1]["content"] += " Why?" * 100
    file = write(tmp_path / "pairs.jsonl", rows)
    here = ("--model_name_or_path", "tiny", "--dataset_name", file)
    small = ("--max_steps", 2, "--per_device_train_batch_size", 2)
    done = command("reward", *here, *small, "--eval_steps", 2, "--output_dir", "reward")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 of 18 pairs were left out: longer than 128 tokens" in done.stderr
    worst = json.loads((tmp_path / "reward" / "summary.json").read_text())["reward_model"]["worst"][0]
    assert worst["prompt"].startswith("system: Be short.\n\nuser: What is") and worst["chosen"] == "So."
    small = (
        "--max_steps",
        1,
        "--per_device_train_batch_size",
        4,
        "--response_length",
        8,
        "--allow_chance_reward",
        "true",
        "--ceiling_samples",
        2,
    )
    done = command("ppo", *here, *small, "--reward_model_path", "reward", "--output_dir", "ppo")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 of 16 prompts were left out" in done.stderr
    sample = json.loads((tmp_path / "ppo" / "samples.jsonl").read_text().splitlines()[0])
    assert sample["prompt"].startswith("system: Be short.")
    assert (tmp_path / "ppo" / "model" / "chat_template.jinja").exists()
    done = command(
        "compare", "--models", "ppo=ppo", "--base_model_name_or_path", "tiny", "--dataset_name", file,
        "--samples", 1, "--response_length", 8, "--ceiling_samples", 2, "--output_dir", "compare",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "system: Be short.\n\nuser: What is" in (tmp_path / "compare" / "scores.csv").read_text()


def test_pairs_are_read_as_trl_reads_them(tmp_path, base):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    from rlhf.models.prompts import PromptReader, give_chat_template
    from rlhf.reward import tokenized

    for template in (True, False):
        chat_model(tmp_path / "tiny", template)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tiny", num_labels=1)
        args = RewardConfig(str(tmp_path / "out"), report_to="none", bf16=False, max_length=128, use_cpu=True)
        for shape in (explicit, explicit_conversation):
            pairs = Dataset.from_list([shape(number) for number in range(4)])
            give_chat_template(tokenizer, pairs["prompt"])
            trainer = RewardTrainer(model=model, args=args, train_dataset=pairs, processing_class=tokenizer)
            ours, theirs = tokenized(pairs, PromptReader(tokenizer, None), 128), trainer.train_dataset
            for side in ("chosen_ids", "rejected_ids"):
                for mine, other in zip(ours[side], theirs[side], strict=True):
                    rest = other[len(mine) :]
                    assert other[: len(mine)] == mine and tokenizer.decode(rest).strip() == ""
                    assert mine[-1] == tokenizer.eos_token_id


def test_a_model_from_elsewhere_that_pads_with_its_end_token_is_scored_before_it_as_in_its_training(tmp_path):
    from rlhf.models import load_reward_model
    from rlhf.models.prompts import PromptReader
    from rlhf.models.scoring import score_ids

    chat_model(tmp_path / "tiny", template=False)
    model, tokenizer = load_reward_model(str(tmp_path / "tiny"))
    model.config.pad_token_id = tokenizer.eos_token_id
    reader = PromptReader(tokenizer, None)
    rows = [reader.pair("Why?", answer).ids for answer in (" So.", " Because it is long.")]
    padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        trained = model(**padded).logits[:, 0]
    assert torch.allclose(score_ids(model, rows), trained, atol=1e-5)


def test_every_text_is_read_once_in_whole_batches_of_like_length():
    rng = random.Random(0)
    lengths = [rng.randrange(10, 100) for _ in range(2005)]
    batches = list(shuffled_batches_by_length(lengths, 16, random.Random(1)))
    assert sorted(row for batch in batches for row in batch) == list(range(2005))
    assert [len(batch) for batch in batches] == [16] * 125 + [5]
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)


def test_long_and_short_batches_follow_each_other_at_random():
    lengths = list(range(1600))
    longest = [max(batch) for batch in shuffled_batches_by_length(lengths, 16, random.Random(1))]
    rising = sum(a < b for a, b in zip(longest, longest[1:], strict=False)) / len(longest)
    assert 0.4 < rising < 0.6  # sorted stretches would rise, or fall, throughout


def test_a_fingerprint_changes_with_a_text_and_with_a_border():
    assert fingerprint(["ab", "c"]) == fingerprint(["ab", "c"])
    assert len({fingerprint(texts) for texts in (["ab", "c"], ["a", "bc"], ["ab", "d"], ["ab"])}) == 4


def test_a_conversation_has_another_fingerprint_than_a_text_that_reads_alike():
    """It is trained on otherwise, through the chat template."""
    values = ["What?", [said("user", "What?")], [said("system", "What?")], 1.0, 2.0]
    assert len({fingerprint([value]) for value in values}) == len(values)
    assert readable(values[0]) == readable(values[1])
