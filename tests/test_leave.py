"""How a run's work leaves: the same run again, a zip, a model that plain Transformers loads, a card, the Hub."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import types
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata

import pytest
import torch
from huggingface_hub import ModelCard
from worlds import small_gpt2, trainer_for

from rlhf import __main__ as command_line
from rlhf.config import BadInput, build
from rlhf.kinds import KINDS
from rlhf.models import load_policy, load_reward_model
from rlhf.models.prompts import PromptReader, question_prompt
from rlhf.models.scoring import score_ids
from rlhf.runs import directory as runs
from rlhf.runs.directory import Run
from rlhf.runs.files import write_json
from rlhf.ui import downloads
from rlhf.write import card, export


EXAMPLE = runs.EXAMPLE
QUESTION, ANSWER = "Tell me how to clean an oven.", "Wipe it with baking soda and water, and let it dry."


def run_of(path, kind, **config):
    """A finished run's directory with a model folder, its config written as `Run.create` writes it."""
    run = Run.create(path, kind, {"model_name_or_path": "everyday", "dataset_name": "everyday", "seed": 0, **config})
    run.set_status(state="finished", step=3, total_steps=3)
    model = path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (model / name).write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(1000))
    return run


# The same run again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("demo", {"seed": 3, "kl_coef": 3e-6, "allow_chance_reward": True, "reward_max_steps": 20}),
        ("reward", {"dataset_name": "my pairs; rm -rf 'x'.jsonl", "model_name_or_path": "-odd", "save_steps": 5}),
        ("ppo", {"reward_model_path": "/a b/$HOME", "missing_eos_penalty": None, "stop_token": None, "lam": 0.95}),
        ("ppo", {"reward_model_path": 'q"uote', "cliprange_high": 0.28, "kl_controller": "adaptive", "max_steps": 7}),
        ("compare", {"models": ["base", "ppo=runs/it's mine", "best-of-4"], "samples": 1}),
    ],
)
def test_command_and_python_of_a_run_make_its_settings_again(tmp_path, monkeypatch, kind, given):
    config = build(KINDS[kind].settings, given)
    run = Run.create(tmp_path / "run", kind, {**vars(config), "output_dir": "gone", "model_revision": "ab"})
    words = shlex.split(export.as_command(run))
    assert words[:4] == ["python", "-m", "rlhf", kind]
    read = vars(command_line.parser().parse_args(words[3:]))
    assert read.pop("command") == kind
    assert build(KINDS[kind].settings, command_line.settings(read)) == config
    made = []
    monkeypatch.setitem(sys.modules, "rlhf.commands", types.SimpleNamespace(**{kind: made.append}))
    exec(compile(ast.parse(export.as_python(run)), "script", "exec"), {})
    assert made == [config]


def test_the_command_names_what_differs_and_nothing_else():
    assert export.as_command(Run(EXAMPLE)) == "python -m rlhf demo --seeds 3 --seed 0"


# A zip -------------------------------------------------------------------------------------------------------------


def test_a_zip_holds_the_run_without_checkpoints_and_with_cards(tmp_path):
    demo = Run.create(tmp_path / "demo-20260101-000000-0001", "demo", {"seed": 0})
    ppo = run_of(demo.path / "ppo", "ppo")
    (ppo.path / "model" / "README.md").write_text("my own words")
    reward = run_of(demo.path / "reward", "reward")
    kept = reward.path / "checkpoints" / "checkpoint-2"
    kept.mkdir(parents=True)
    (kept / "optimizer.pt").write_bytes(b"0")
    (demo.path / "train.log").write_text("said\n" * 1000)
    path = export.write_zip(demo, tmp_path / "out" / "run.zip")
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        names = {name.removeprefix(f"{demo.id}/") for name in file.namelist()}
        assert file.read(f"{demo.id}/ppo/model/README.md") == b"my own words"
        assert "# Reward model from run demo-" in file.read(f"{demo.id}/reward/model/README.md").decode()
    there = {path.relative_to(demo.path).as_posix() for path in demo.path.rglob("*") if path.is_file()}
    assert names == there - {"reward/checkpoints/checkpoint-2/optimizer.pt"} | {"reward/model/README.md"}
    assert not (reward.path / "model" / "README.md").exists()  # a page only reads a run
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.zip"]


def test_a_zip_is_made_once_and_again_when_the_run_has_gone_on(tmp_path):
    run = run_of(tmp_path / "run", "ppo")
    first = downloads.zip_of(run, tmp_path / "cache")
    made = first.stat().st_ino
    assert downloads.zip_of(run, tmp_path / "cache").stat().st_ino == made
    run.log({"step": 1})
    os.utime(run.path / "metrics.jsonl", (first.stat().st_mtime + 1,) * 2)
    with zipfile.ZipFile(downloads.zip_of(run, tmp_path / "cache")) as file:
        assert "run/metrics.jsonl" in file.namelist()


def test_the_example_run_leaves_whole_and_its_size_is_foretold(tmp_path):
    run = Run(EXAMPLE)
    path = export.write_zip(run, tmp_path / "example.zip")
    assert path.stat().st_size / 1e6 == pytest.approx(export.size_mb(run), rel=0.02)
    with zipfile.ZipFile(path) as file:
        for part in ("ppo", "reward"):
            weights = f"{part}/model/model.safetensors"
            assert file.read(f"example/{weights}") == (EXAMPLE / weights).read_bytes()
            assert f"example/{part}/model/README.md" in file.namelist()


# A model that plain Transformers loads -----------------------------------------------------------------------------


READER = """
import contextlib, io, json, os, sys
import torch

found = []
for folder, code in json.load(sys.stdin):
    os.chdir(folder)
    names, said = {}, io.StringIO()
    with contextlib.redirect_stdout(said), torch.no_grad():
        exec(code, names)
        reads = {name: ids.tolist() for name, ids in names["inputs"].items()}
        logits = names["model"](**names["inputs"]).logits[0].tolist()
    found.append({"said": said.getvalue().strip().splitlines()[-1], "inputs": reads, "logits": logits})
assert "rlhf" not in sys.modules
print(json.dumps(found))
"""


def code_of(text):
    return re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)


@pytest.fixture(scope="module")
def read_plainly(tmp_path_factory):
    """What the code of cards comes to in a Python that cannot see this package, by run and part.

    "example" is the example run as somebody finds it in a downloaded zip, "plain" the same without a chat template.
    """
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(export.write_zip(Run(EXAMPLE), folder / "example.zip")) as file:
        file.extractall(folder)
    cards = {}
    for part in ("ppo", "reward"):
        model = folder / "example" / part / "model"
        cards["example", part] = str(model), code_of((model / "README.md").read_text())
        model = shutil.copytree(EXAMPLE / part, folder / "plain" / part) / "model"
        (model / "chat_template.jinja").unlink()
        cards["plain", part] = str(model), code_of(card.model_card(model))
    words = [sys.executable, "-I", "-c", READER]
    done = subprocess.run(words, input=json.dumps([*cards.values()]), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(cards, json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_the_cards_code_loads_the_policy_in_plain_transformers(read_plainly):
    found = read_plainly["example", "ppo"]
    [ids], logits = found["inputs"]["input_ids"], found["logits"][-1]
    model, tokenizer = load_policy(str(EXAMPLE))
    assert ids == question_prompt(tokenizer, QUESTION, 64).ids
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(logits), model(torch.tensor([ids])).logits[0, -1])


def test_the_cards_code_gives_the_reward_models_score_in_plain_transformers(read_plainly):
    said = float(read_plainly["example", "reward"]["said"])
    model, tokenizer = load_reward_model(str(EXAMPLE))
    rows = [PromptReader(tokenizer, None).pair(f"{QUESTION}\n", ANSWER).ids]
    assert said == pytest.approx(score_ids(model, rows).item(), abs=1e-4)


def test_code_for_models_without_a_chat_template_reads_plain_text(read_plainly):
    assert read_plainly["plain", "ppo"]["said"]
    model, tokenizer = load_reward_model(str(EXAMPLE))
    ids = tokenizer(QUESTION + ANSWER + tokenizer.eos_token)["input_ids"]
    assert float(read_plainly["plain", "reward"]["said"]) == pytest.approx(score_ids(model, [ids]).item(), abs=1e-4)


# The card ----------------------------------------------------------------------------------------------------------


def test_a_card_names_hub_models_and_data_in_its_metadata(tmp_path):
    hub = {"model_name_or_path": "HuggingFaceTB/SmolLM2-135M", "dataset_name": "trl-lib/ultrafeedback_binarized"}
    run = run_of(tmp_path / "run", "ppo", **hub, model_revision="0" * 40, kl_coef=0.2, missing_eos_penalty=None)
    text = card.model_card(run.path / "model")
    data = ModelCard(text).data
    assert (data.base_model, data.datasets) == (hub["model_name_or_path"], [hub["dataset_name"]])
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert "| `kl_coef` | 0.2 | 0.12 |" in text and "| `missing_eos_penalty` | none | 1 |" in text
    assert "invented world" not in text and f"torch {metadata.version('torch')}" in text


def test_a_card_tells_no_path_of_the_machine(tmp_path):
    here = {"model_name_or_path": "/home/me/secret/mine", "dataset_name": "/home/me/secret/pairs.jsonl"}
    run = run_of(tmp_path / "run", "ppo", **here, model_revision="0" * 16, reward_model_path="/home/me/secret/judge")
    text = card.model_card(run.path / "model")
    data = ModelCard(text).data
    assert data.base_model is None and data.datasets is None
    assert "`mine`" in text and "`pairs.jsonl`" in text and "secret" not in text and str(tmp_path) not in text


@pytest.mark.parametrize("part", ["ppo", "reward"])
def test_the_shipped_cards_are_what_is_written_today(part):
    folder = EXAMPLE / part / "model"
    assert (folder / "README.md").read_text() == card.model_card(folder)


def test_a_card_tells_no_comparison_of_another_model(tmp_path):
    comparison = Run.create(tmp_path / "compare", "compare", {})
    shutil.copy(EXAMPLE / "compare" / "summary.json", comparison.path)  # of ppo, not of a training with another seed
    run = run_of(comparison.path / "ppo-seed-1", "ppo")
    assert "gain" not in card.model_card(run.path / "model")


def test_no_setting_breaks_the_table_of_a_card(tmp_path):
    run = run_of(tmp_path / "run", "ppo", lora_target_modules="(q|v)\n_proj {{ seed }} {% if %}")
    [row] = [line for line in card.model_card(run.path / "model").splitlines() if "lora_target_modules" in line]
    assert row == r"| `lora_target_modules` | (q\|v) \_proj {{ seed }} {% if %} | all-linear |"


def test_a_card_gives_numbers_with_units_and_intervals(tmp_path):
    run = run_of(tmp_path / "reward", "reward", max_steps=3)
    shutil.copy(EXAMPLE / "reward" / "summary.json", run.path)
    text = card.model_card(run.path / "model")
    assert "On 993 held-out pairs, with 95 % intervals:" in text
    assert "Loss: 0.313 [0.278, 0.350] nats" in text and "Accuracy: 87.7 % [85.5 %, 89.6 %]" in text
    run = run_of(tmp_path / "ppo", "ppo")
    for step in range(1, 21):
        run.log({"step": step, "objective/scores_raw": float(step), "objective/kl": 0.1 * step})
    run.set_status(step=20, total_steps=40)
    text = card.model_card(run.path / "model")
    assert "| | first | mean of the last 8 |" in text
    assert "| reward-model score, before normalisation | 1.00 | 16.50 |" in text
    assert "| KL from the base model, nats per response | 0.10 | 1.65 |" in text
    assert "Updates: 20 of 40 (stopped early)." in text


def evaluated(folder, eval_dataset):
    """The line of metrics that a small trainer writes when it evaluates, after two updates."""
    settings = {"total_episodes": 32, "learning_rate": 0.1, "eval_num_samples_per_prompt": 4}
    trainer = trainer_for(small_gpt2(12), lambda ids: sum(ids) / 8, folder, eval_dataset=eval_dataset, **settings)
    trainer.train()
    trainer.evaluate()
    return trainer.state.log_history[-1]


def test_a_card_tells_the_last_evaluation_of_the_policy(tmp_path):
    run = Run(shutil.copytree(EXAMPLE / "ppo", tmp_path / "ppo"))
    line = evaluated(tmp_path / "trainer", ["<bos> t4", "t5", "t6"])
    run.log({**line, "step": 80, "eval/score": 99.0})
    run.log({**line, "step": 160})
    text = card.model_card(run.path / "model").replace("\N{MINUS SIGN}", "-")
    assert line["eval/gain"] != 0 and "99.0" not in text
    assert (
        f"""
Evaluation after update 160, on the held-out prompts:

- Reward-model score: {line["eval/score"]:.2f}, base model {line["eval/base_score"]:.2f}
- Gain: {line["eval/gain"]:+.2f} [{line["eval/gain_ci_low"]:+.2f}, {line["eval/gain_ci_high"]:+.2f}]"""
        f""" (95 % interval over prompts)
- Win rate against the base model: {100 * line["eval/win_rate"]:.1f} %; chance is 50 %
- Exact KL from the base model: {line["eval/kl"]:.2f} nats per response
- Length: {line["eval/mean_length"]:.1f} tokens per response; finished (EOS): {100 * line["eval/eos_rate"]:.1f} %
""" in text
    )


def test_a_card_tells_the_evaluation_of_each_data_set_by_its_name(tmp_path):
    run = Run(shutil.copytree(EXAMPLE / "ppo", tmp_path / "ppo"))
    line = evaluated(tmp_path / "trainer", {"short": ["<bos>"], "long": ["t4 t5 t6"]})
    run.log({**line, "step": 160})
    text = card.model_card(run.path / "model")
    for name in ("short", "long"):
        assert f"on the held-out prompts `{name}`:\n\n- Reward-model score: {line[f'eval_{name}/score']:.2f}," in text


# The Hub -----------------------------------------------------------------------------------------------------------


def test_only_what_needs_no_unpickling_is_pushed_and_the_card_with_it(tmp_path):
    run = run_of(tmp_path / "run", "ppo")
    for name in ("training_args.bin", "optimizer.pt", "chat_template.jinja", ".hidden"):
        (run.path / "model" / name).write_text("0")
    (run.path / "model" / "value_model").mkdir()
    files = export.pushed_files(run.path / "model")
    names = {"README.md", "config.json", "model.safetensors", "tokenizer_config.json", "chat_template.jinja"}
    assert set(files) == names
    assert files["README.md"].decode() == card.model_card(run.path / "model")
    assert set(export.pushed_files(EXAMPLE / "reward" / "model")) == names | {"tokenizer.json"}


def test_what_is_pushed_of_a_demo_is_its_policy_or_its_reward_model(tmp_path):
    assert export.model_folder(Run(EXAMPLE), "policy") == EXAMPLE / "ppo" / "model"
    assert export.model_folder(Run(EXAMPLE), "reward") == EXAMPLE / "reward" / "model"
    assert export.model_folder(Run(EXAMPLE / "reward"), "reward") == EXAMPLE / "reward" / "model"
    write_json(tmp_path / "config.json", {"kind": "demo"})
    with pytest.raises(BadInput, match="no finished policy.*--what reward"):
        export.model_folder(Run(tmp_path), "policy")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repo_id", "me/polite"], "Nothing was pushed: HF_HUB_OFFLINE is set; unset it, then push again."),
        ([], "Give --repo_id"),
        (["--repo_id", "a/b/c"], "Give --repo_id"),
        (["--repo_id", "me/polite", "--what", "value"], "what must be one of policy, reward"),
    ],
)
def test_a_push_that_cannot_be_says_so_in_one_sentence(command, words, message):
    done = command("push", EXAMPLE, *words)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


class Unwilling(BaseHTTPRequestHandler):
    """A Hub that knows nobody."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_error(401)

    def log_message(self, *args):
        pass


def test_without_a_token_the_sentence_says_how_to_get_one(rlhf, tmp_path, monkeypatch):
    hub = ThreadingHTTPServer(("127.0.0.1", 0), Unwilling)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    try:
        assert "run `hf auth login`" in rlhf("push", EXAMPLE, "--repo_id", "me/polite").stderr
    finally:
        hub.shutdown()
        hub.server_close()
    assert "the Hub cannot be reached; check the network" in rlhf("push", EXAMPLE, "--repo_id", "me/polite").stderr
