"""GGUF files as policies; with RLHF_SLOW=1, SmolLM2-135M-Instruct with its real weights, from preview to Chat.

The package gguf is optional: without it, the tests that read a file are skipped.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from processes import ROOT
from tokenizers import pre_tokenizers
from worlds import CHATML

from rlhf.config import BadInput
from rlhf.models import load_policy, load_reward_model, loading
from rlhf.models.prompts import PromptReader, end_ids
from rlhf.runs.directory import Run


PAIRS = ROOT.parent / "shared" / "data" / "hh-rlhf-harmless-sample.jsonl.gz"


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
    monkeypatch.setattr(loading.transformers.utils, "is_gguf_available", lambda: False)
    again, _ = load_policy(str(tmp_path / "copy.gguf"))
    assert again.name_or_path == first.name_or_path and loading.revision(again) == loading.revision(first)


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
        patch.setattr(loading.transformers.utils, "is_gguf_available", lambda: False)
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
