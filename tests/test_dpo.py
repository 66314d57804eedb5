"""DPO by TRL's trainer: it begins where policy and reference agree, learns, and leaves a run like every other."""

import json
import math

import gradio as gr
import pytest

from rlhf import metrics, models
from rlhf.config import BadInput, DPOArguments, build
from rlhf.data.load import load_preferences
from rlhf.dpo import train_dpo
from rlhf.figures.curves import DPO_PANELS
from rlhf.launch import limits
from rlhf.launch.start import _compared as compared
from rlhf.launch.start import start_run
from rlhf.models.prompts import PromptReader
from rlhf.reward import tokenized
from rlhf.runs.directory import EXAMPLE, Run
from rlhf.ui import live
from rlhf.ui.comparison_form import ComparisonForm
from rlhf.ui.headline import headline
from rlhf.ui.lessons import LESSONS, lesson
from rlhf.ui.train import TrainTab, _learns


@pytest.fixture(scope="module")
def trained(tmp_path_factory, few_pairs, one_thread):
    """A finished DPO run: six steps of eight pairs."""
    from processes import keep_signals

    from rlhf.commands import dpo

    out = tmp_path_factory.mktemp("dpo") / "dpo-20260101-000000-abcd"
    settings = {"dataset_name": str(few_pairs), "output_dir": str(out), "max_steps": 6, "learning_rate": 1e-3}
    settings |= {"per_device_train_batch_size": 8, "logging_steps": 1, "save_steps": 4, "eval_steps": 6}
    with keep_signals():
        dpo(build(DPOArguments, settings))
    return Run(out)


def test_it_starts_at_the_base_model_and_learns_which_answers_were_chosen(trained):
    rows = trained.metrics()
    losses = [row[metrics.LOSS] for row in rows if metrics.LOSS in row]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)  # policy and reference are the same
    assert next(row for row in rows if metrics.DPO_MARGIN in row)[metrics.DPO_MARGIN] == pytest.approx(0, abs=1e-4)
    evaluated = [row for row in rows if metrics.EVAL_LOSS in row]
    assert [row[metrics.STEP] for row in evaluated] == [6]
    assert evaluated[0][metrics.EVAL_LOSS] < math.log(2) - 0.01
    assert evaluated[0][metrics.DPO_EVAL_ACCURACY] > 0.6 and evaluated[0][metrics.DPO_EVAL_MARGIN] > 0


def test_its_run_directory_is_complete(trained):
    assert trained.status()["state"] == "finished" and trained.status()["step"] == 6
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in trained.model("policy").iterdir()
    }
    assert trained.model("reward") is None and trained.reward_model_path() is None
    assert trained.method() == "dpo" and trained.base_model() == "everyday"
    assert trained.config()["beta"] == DPOArguments.beta and len(trained.config()["data_fingerprint"]) == 16
    card = (trained.path / "model" / "README.md").read_text()
    assert "DPOTrainer" in card and "nats; the base model has 0.693" in card and "AutoModelForCausalLM" in card
    policy, _ = models.load_policy(str(trained.path))
    base, _ = models.load_policy("everyday")
    assert any((one != other).any() for one, other in zip(policy.parameters(), base.parameters(), strict=True))


def test_it_resumes_from_its_checkpoint(trained, few_pairs, tmp_path, command):
    small = ("--dataset_name", few_pairs, "--max_steps", 6, "--learning_rate", 1e-3, "--save_steps", 4)
    small += ("--per_device_train_batch_size", 8, "--logging_steps", 1, "--eval_steps", 6)
    checkpoint = trained.path / "checkpoints" / "checkpoint-4"
    done = command("dpo", *small, "--output_dir", "again", "--resume_from_checkpoint", checkpoint)
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = (
        next(row[metrics.EVAL_LOSS] for row in run.metrics() if metrics.EVAL_LOSS in row)
        for run in (trained, Run(tmp_path / "again"))
    )
    assert one == pytest.approx(other, abs=1e-6)


def test_a_comparison_takes_it_beside_best_of_n(trained, command, tmp_path):
    done = command(
        "compare", "--models", f"dpo={trained.path}", "best-of-4", "--reward_model_path", EXAMPLE,
        "--num_prompts", 4, "--samples", 2, "--response_length", 16, "--ceiling_samples", 4, "--ceiling_prompts", 2,
        "--output_dir", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["splits"]["test"]
    assert list(found["models"]) == ["base", "dpo", "best-of-4"] and found["models"]["dpo"]["kl"]["value"] > 0
    assert "score" in found["against_base"]["dpo"]["share"]


def test_by_itself_it_is_scored_only_by_a_reward_model_that_is_named(trained, command):
    done = command("compare", "--models", f"dpo={trained.path}", "--num_prompts", 4)
    assert done.returncode == 2 and "Give --reward_model_path" in done.stderr and done.stderr.count("\n") == 1


def test_the_live_view_draws_its_curves_and_says_what_it_learned(trained):
    news = live.news(live.Snapshot(trained.path), {})
    drawn = {trace["meta"]["key"] for trace in news["parts"]["dpo"]["figure"]["data"] if "key" in trace["meta"]}
    assert drawn == {key for panel in DPO_PANELS for key in (panel.key, panel.held_out)}
    assert [phase["label"] for phase in news["phases"]] == ["DPO"]
    assert "the answer people chose became likelier than the other" in news["headline"]["text"]
    begun = headline({"state": "running"}, {"dpo": trained.metrics()[:1]})
    assert begun["text"].startswith(("Too early to tell", "The first steps"))  # one line says nothing yet


def test_trl_reads_the_tokens_that_the_reward_model_reads(trained, few_pairs):
    """TRL tokenizes the texts itself; its ids are those of `PromptReader.pairs`."""
    from trl import DPOConfig, DPOTrainer

    pairs, _ = load_preferences(str(few_pairs))
    policy, tokenizer = models.load_policy("everyday")
    pairs = tokenized(pairs.select(range(20)), PromptReader(tokenizer, None), 128)
    texts = pairs.select_columns(["prompt", "chosen", "rejected"])
    args = DPOConfig(str(trained.path / "unused"), bf16=False, use_cpu=True, report_to="none", max_length=None)
    read = DPOTrainer(policy, args=args, train_dataset=texts, processing_class=tokenizer).train_dataset
    for side in ("chosen", "rejected"):
        assert [row["prompt_ids"] + row[f"{side}_ids"] for row in read] == list(pairs[f"{side}_ids"])
        assert [row["prompt_ids"] for row in read] == list(pairs["prompt_ids"])


@pytest.mark.process
def test_adapters_are_trained_and_merged(few_pairs, tmp_path):
    pytest.importorskip("peft")
    args = DPOArguments(use_peft=True, lora_r=2, max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2)
    policy, tokenizer = models.load_policy("everyday")
    train, held_out = load_preferences(str(few_pairs))
    train, held_out = (
        tokenized(pairs, PromptReader(tokenizer, None), 128).select(range(8)) for pairs in (train, held_out)
    )
    adapters = models.lora(args, policy, "CAUSAL_LM")
    learned = train_dpo(policy, tokenizer, args, train, held_out, tmp_path, [], adapters)
    before, _ = models.load_policy("everyday")
    assert [name for name, _ in learned.named_parameters()] == [name for name, _ in before.named_parameters()]
    changed = [name for name, weight in learned.named_parameters() if (weight != before.get_parameter(name)).any()]
    assert changed and all("c_" in name for name in changed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beta", "0"], "beta must be above 0"),
        (["--dataset_name", "nowhere.jsonl"], "There is no file nowhere.jsonl"),
        (["--max_length", "8", "--dataset_name", "PAIRS"], "raise max_length"),
        (["--reward_model_path", "x"], "unrecognized arguments"),
    ],
)
def test_a_mistake_is_one_sentence(command, few_pairs, tmp_path, words, message, capfd):
    words = [few_pairs if word == "PAIRS" else word for word in words]
    if message == "unrecognized arguments":
        with pytest.raises(SystemExit):
            command("dpo", *words)
        assert message in capfd.readouterr().err
    else:
        done = command("dpo", *words)
        assert done.returncode == 2 and message in done.stderr
        assert done.stderr.startswith("error: ") or "\nerror: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_space_limits_it_as_the_others(monkeypatch, root):
    monkeypatch.setenv("SPACE_ID", "someone/lab")
    limits.check(vars(DPOArguments()))
    with pytest.raises(BadInput, match="max_steps is at most 2,000 on this Space"):
        start_run("dpo", {"max_steps": "1e6"})
    with pytest.raises(BadInput, match="max_length is at most 128"):
        start_run("dpo", {"max_length": "500"})


def test_the_page_compares_it_by_a_reward_model_from_the_same_base(trained, monkeypatch):
    monkeypatch.setenv("RLHF_RUNS", str(trained.path.parent))
    assert ComparisonForm.choices(None, trained.id).value == [trained.id]
    alone = compared([trained.id, "best-of-4"])
    assert alone["models"] == [f"dpo={trained.path}", "best-of-4"]
    assert alone["reward_model_path"] == str(EXAMPLE / "reward")
    both = compared([trained.id, "example"])
    assert both["models"] == [f"dpo-abcd={trained.path}", f"ppo-example={EXAMPLE}"]
    assert both["reward_model_path"] == str(EXAMPLE / "reward")


def test_the_forms_say_how_each_method_learns():
    with gr.Blocks():
        tab = TrainTab()
    assert "dpo" in [kind for _, kind in tab.mode.choices] and "beta" in tab.forms["dpo"].knobs
    learns = tab.forms["ppo"].knobs["advantage_estimator"]
    assert learns.label == "How it learns" and "num_generations" in tab.forms["ppo"].knobs
    assert [name for name, _ in learns.choices] == [
        "PPO with a critic (GAE)", "PPO with leave-one-out (RLOO)", "GRPO", "REINFORCE++",
    ]  # fmt: skip
    assert learns.value == "rloo"
    assert {value for _, value in learns.choices} | {"dpo"} == LESSONS.keys()
    assert all(lesson(name).count("<code>") == 1 for name in LESSONS)
    assert _learns("rloo", "1") == (lesson("rloo"), "4") and _learns("gae", "1")[1] == "1"
