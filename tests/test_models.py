"""Broken, foreign and unusual models: a sentence before anything is made, from every command and from Chat.

The ids are those of public bug reports, `B04` for one.
"""

import json
import os
import re
import shutil
from collections import Counter

import pytest
import torch
from processes import keep_signals
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    MptConfig,
    MptForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)
from worlds import chat_model, classifier, quick

from rlhf import models
from rlhf.__main__ import main
from rlhf.commands import comparison
from rlhf.config import BadInput
from rlhf.models import loading
from rlhf.models.packed import use_packed_attention
from rlhf.runs.directory import Run
from rlhf.ui import voices


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def short_templates(monkeypatch):
    monkeypatch.setattr(loading, "TEMPLATE_SECONDS", 0.2)


@pytest.fixture(autouse=True)
def signals():
    with keep_signals():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A whole policy, a judge made from it, and preference pairs, as texts and as conversations."""
    folder = tmp_path_factory.mktemp("world")
    chat_model(folder / "policy")
    set_seed(0)
    judge = LlamaForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
    judge.save_pretrained(folder / "judge")
    AutoTokenizer.from_pretrained(folder / "policy").save_pretrained(folder / "judge")
    texts = [{"prompt": f"Say {n}.", "chosen": f" {n}!", "rejected": " no"} for n in range(40)]
    talks = [
        {"prompt": [{"role": "user", "content": row["prompt"]}]}
        | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        for row in texts
    ]
    for name, rows in (("texts", texts), ("talks", talks)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def edit(file, **changes):
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, **changes}))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def spoil(weights):
    weights["model.norm.weight"][0] = float("nan")


def misshape(weights):
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)


def lose(weights):
    del weights["model.layers.1.mlp.up_proj.weight"]


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1000])


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def empty(folder):
    for file in folder.iterdir():
        file.unlink()


def add_pad(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<new pad>"})
    tokenizer.save_pretrained(folder)


def no_tokenizer(folder):
    for file in folder.glob("*token*"):
        file.unlink()


def instead(config, kind, **sizes):
    """A model of another kind in the same place."""

    def change(folder):
        (folder / "config.json").unlink()
        kind(config(**sizes)).save_pretrained(folder)

    return change


SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BROKEN = {
    "an empty folder": (empty, "config.json"),
    "no config.json": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "config.json cut off": (lambda folder: (folder / "config.json").write_text('{"a": '), "could not be read"),
    "config.json a list": (lambda folder: (folder / "config.json").write_text("[]"), "could not be read"),
    "config.json not UTF-8": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{"), "could not be read"),
    "a size that is text": (lambda folder: edit(folder / "config.json", hidden_size="wide"), "No model could be"),
    "sizes that do not divide": (lambda folder: edit(folder / "config.json", num_attention_heads=5), "No model"),
    "an unknown model_type": (lambda folder: edit(folder / "config.json", model_type="wonder"), "wonder"),
    "no model_type": (lambda folder: edit(folder / "config.json", model_type=None), "No model could be loaded"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "truncated weights": (lambda folder: truncate(folder / "model.safetensors"), "No model could be loaded"),
    "an empty file of weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "No model"),
    "weights of a wrong shape": (lambda folder: edit_weights(folder, misshape), "other sizes than its config"),
    "weights that are missing": (lambda folder: edit_weights(folder, lose), "incomplete.*up_proj"),
    "more layers than config.json says": (
        lambda folder: edit(folder / "config.json", num_hidden_layers=1),
        "hold more than its config.json describes.*layers.1",
    ),
    "B18 weights that are NaN": (lambda folder: edit_weights(folder, spoil), "not finite.*norm"),
    "pickled weights": (pickle_weights, "safetensors"),
    "no tokenizer": (no_tokenizer, "No tokenizer could be loaded"),
    "tokenizer.json cut off": (lambda folder: truncate(folder / "tokenizer.json"), "No tokenizer could be loaded"),
    "tokenizer.json an empty object": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "No tokenizer"),
    "B15 a tokenizer.json of an unknown kind": (
        lambda folder: edit(folder / "tokenizer.json", model={"type": "Wonder", "vocab": {}}),
        "No tokenizer could be loaded.*pip install -U tokenizers",
    ),
    "B08 an added pad token without a row": (add_pad, "rows.*<new pad>.*resize_token_embeddings"),
    "a quantization_config": (
        lambda folder: edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "No model could be loaded",
    ),
    "attention as a kernel of the Hub": (
        lambda folder: edit(folder / "config.json", _attn_implementation="someone/kernel"),
        "code of its own",
    ),
    "experts as a kernel of the Hub": (
        lambda folder: edit(folder / "config.json", experts_implementation="someone/kernel"),
        "code of its own",
    ),
    "attention as a kernel of the Hub, for each part": (
        lambda folder: edit(folder / "config.json", attn_implementation={"": "someone/kernels:x"}),
        "code of its own",
    ),
    "layers by the million": (lambda folder: edit(folder / "config.json", num_hidden_layers=10**7), "says num_hidden"),
    "labels by the billion": (lambda folder: edit(folder / "config.json", num_labels=10**9), "says num_labels = 1e"),
    "a length that is text": (
        lambda folder: edit(folder / "tokenizer_config.json", model_max_length="long"),
        "model_max_length is no number",
    ),
    "a chat template without end": (
        lambda folder: (folder / "chat_template.jinja").write_text(
            "{% for _ in range(99999) %}{% for _ in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}"
        ),
        "chat template of .* does not end",
    ),
    "code of its own": (
        lambda folder: edit(folder / "config.json", auto_map={"AutoModel": "modeling.Wonder"}),
        "code of its own",
    ),
    "a sequence-to-sequence model": (
        instead(T5Config, T5ForConditionalGeneration, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
        "No model could be loaded|not a reward model|is an encoder",
    ),
    "a model of images": (
        instead(ViTConfig, ViTForImageClassification, **SMALL, image_size=8, patch_size=4),
        "No model could be loaded|not a reward model",
    ),
    "a masked language model": (
        instead(BertConfig, BertForMaskedLM, **SMALL, vocab_size=259),
        "no causal language model|not a reward model|is an encoder",
    ),
}  # fmt: skip
"""What is wrong with a model -> what makes it so, and what the sentence says."""


def refused(capsys, *words):
    """What a command says that refuses; nothing is made."""
    code = main(list(map(str, words)))
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert (code, said[:7]) == (2, "error: ")
    return said


def every_way(world, broken, out):
    """The commands in which a broken model plays each role; `broken` holds a policy and a judge, as `world` does."""
    data, out = ("--dataset_name", world / "talks.jsonl"), ("--output_dir", out)
    for command in ("reward", "dpo"):
        yield command, "--model_name_or_path", broken / "policy", *data, *out
    for policy, judge in ((broken / "policy", world / "judge"), (world / "policy", broken / "judge")):
        for command in ("ppo", "ceiling"):
            yield command, "--model_name_or_path", policy, "--reward_model_path", judge, *data, *out
    for base, other, judge in (
        (world / "policy", broken / "policy", world / "judge"),
        (broken / "policy", world / "policy", world / "judge"),
        (world / "policy", world / "policy", broken / "judge"),
    ):
        given = ("--base_model_name_or_path", base, "--models", f"other={other}", "--reward_model_path", judge)
        yield "compare", *given, *data, *out


@pytest.mark.process  # of every fault nine commands are asked
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_model_is_told_before_anything_is_made(fault, world, tmp_path, capsys):
    spoil_it, expected = BROKEN[fault]
    for role in ("policy", "judge"):
        shutil.copytree(world / role, tmp_path / role)
        spoil_it(tmp_path / role)
    for words in every_way(world, tmp_path, tmp_path / "run"):
        said = refused(capsys, *words)
        assert re.search(expected, said), said
        assert len(said) < 900
        assert not (tmp_path / "run").exists()
    # In Chat, as the base of a run and as its reward model
    for settings in ({"model_name_or_path": tmp_path / "policy"}, {"reward_model_path": tmp_path / "judge"}):
        run = Run.create(tmp_path / f"run-{len(list(tmp_path.iterdir()))}", "ppo", {
            "model_name_or_path": str(world / "policy"), "reward_model_path": str(world / "judge"),
            **{name: str(path) for name, path in settings.items()},
        })  # fmt: skip
        shutil.copytree(world / "policy", run.path / "model")
        with pytest.raises(BadInput, match=expected):
            list(voices.conversation(run, "Hello?", []))


def test_weights_of_the_layers_that_the_config_leaves_out_are_told(world, tmp_path):
    """Also biases and norms, and where the names of the weights lack the prefix of the trunk."""
    models_ = {
        "biases": (LlamaForCausalLM, LlamaConfig(**SMALL, vocab_size=259, attention_bias=True), "attention_bias"),
        "norms": (Qwen3ForCausalLM, Qwen3Config(**SMALL, vocab_size=259, head_dim=8), None),
        "a bare trunk": (LlamaModel, LlamaConfig(**{**SMALL, "num_hidden_layers": 2}, vocab_size=259), None),
    }
    for name, (kind, config, left_out) in models_.items():
        kind(config).save_pretrained(tmp_path / name)
        changes = {left_out: False} if left_out else {"num_hidden_layers": 1, "model_type": "llama"}
        edit(tmp_path / name / "config.json", **changes, architectures=["LlamaForCausalLM"])
        with pytest.raises(BadInput, match="more than its config.json describes"):
            models.load_reward_model(str(tmp_path / name))


def test_weights_with_another_purpose_are_left_out_in_silence(world, tmp_path):
    """Heads of a reward model and of TRL, what reads images, and the constants that older versions saved."""
    shutil.copytree(world / "policy", tmp_path / "policy")
    more = ("score.weight", "v_head.summary.weight", "model.vision_tower.patch.weight")
    more += ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.masked_bias")
    edit_weights(tmp_path / "policy", lambda weights: weights.update({name: torch.ones(1, 32) for name in more}))
    model, _ = models.load_policy(str(tmp_path / "policy"))
    plain, _ = models.load_policy(str(world / "policy"))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, plain(ids).logits)
    models.load_reward_model(str(tmp_path / "policy"))


# What a tokenizer must have ------------------------------------------------------------------------------------------


SMALL_PPO = (
    "--max_steps",
    1,
    "--per_device_train_batch_size",
    4,
    "--response_length",
    8,
    "--num_sample_generations",
    0,
)
SMALL_PPO += ("--allow_chance_reward", "true", "--ceiling_samples", 0)
SMALL_PAIRS = ("--max_steps", 2, "--per_device_train_batch_size", 4, "--eval_steps", 2, "--logging_steps", 1)


def run(*words):
    assert main(list(map(str, words))) == 0


@pytest.fixture
def endless(world, tmp_path):
    """A policy and a judge whose tokenizer names no end token and no pad token."""
    for role in ("policy", "judge"):
        shutil.copytree(world / role, tmp_path / role)
        edit(tmp_path / role / "tokenizer_config.json", eos_token=None, pad_token=None)
    return tmp_path


@pytest.mark.parametrize("data", ["texts", "talks"])
def test_without_an_end_token_nothing_begins_that_needs_one(data, world, endless, tmp_path, capsys):
    """B04"""
    given = ("--model_name_or_path", endless / "policy", "--dataset_name", world / f"{data}.jsonl")
    out = ("--output_dir", tmp_path / "run")
    judged = ("--reward_model_path", endless / "judge", *out)
    for words in (("preview", *given), ("reward", *given, *out), ("dpo", *given, *out), ("ppo", *given, *judged)):
        assert "no end token" in refused(capsys, *words)
    assert not (tmp_path / "run").exists()


def test_answers_of_full_length_need_no_end_token(world, endless, tmp_path):
    """B04: what works without one still does."""
    given = ("--dataset_name", world / "texts.jsonl", "--reward_model_path", endless / "judge")
    full = ("--stop_token", "none", "--missing_eos_penalty", "none")
    run("ppo", "--model_name_or_path", endless / "policy", *given, *SMALL_PPO, *full, "--output_dir", tmp_path / "ppo")
    models_ = ("--base_model_name_or_path", endless / "policy", "--models", f"ppo={tmp_path / 'ppo'}")
    small = ("--num_prompts", 2, "--samples", 1, "--response_length", 4, "--ceiling_samples", 0)
    run("compare", *models_, *given, *small, "--output_dir", tmp_path / "compare")


def test_an_embedding_with_room_to_spare_is_taken(world, tmp_path):
    """B09"""
    model = AutoModelForCausalLM.from_pretrained(world / "policy")
    model.resize_token_embeddings(1024)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(world / "policy").save_pretrained(tmp_path)
    model, tokenizer = models.load_policy(str(tmp_path))
    assert model.get_input_embeddings().weight.size(0) == 1024 and len(tokenizer) < 300


def test_a_slow_tokenizer_alone_is_told_what_to_install(world, tmp_path, capsys):
    """B15"""
    shutil.copytree(world / "policy", tmp_path / "policy")
    (tmp_path / "policy" / "tokenizer.json").unlink()
    (tmp_path / "policy" / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    edit(tmp_path / "policy" / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    with pytest.raises(BadInput, match="pip install sentencepiece protobuf"):
        models.load_tokenizer(str(tmp_path / "policy"))


@pytest.mark.parametrize("kind", ["bloom", "mpt"])
def test_families_that_know_no_positions_are_refused_by_name(kind, world, tmp_path, capsys):
    """B11"""
    shutil.copytree(world / "policy", tmp_path / "policy")
    config = (
        BloomConfig(vocab_size=259, hidden_size=16, n_layer=1, n_head=2)
        if kind == "bloom"
        else MptConfig(vocab_size=259, d_model=16, n_layers=1, n_heads=2)
    )
    (BloomForCausalLM if kind == "bloom" else MptForCausalLM)(config).save_pretrained(tmp_path / "policy")
    policy, judge, data = tmp_path / "policy", world / "judge", ("--dataset_name", world / "talks.jsonl")
    out = ("--output_dir", tmp_path / "run")
    judged = ("--reward_model_path", judge)
    for words in (
        ("reward", "--model_name_or_path", policy),
        ("ppo", "--model_name_or_path", policy, *judged),
        ("ceiling", "--model_name_or_path", policy, *judged),
        ("compare", "--base_model_name_or_path", policy, "--models", f"a={policy}", *judged),
    ):
        assert "cannot be read without padding" in refused(capsys, *words, *data, *out)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "kind", "sizes"),
    [
        (BertConfig, BertLMHeadModel, {**SMALL, "is_decoder": True}),
        (GptOssConfig, GptOssForCausalLM, {**SMALL, "head_dim": 8, "num_local_experts": 4, "num_key_value_heads": 2}),
        (StableLmConfig, StableLmForCausalLM, {**SMALL, "num_key_value_heads": 2}),
    ],
    ids=["bert", "gpt-oss", "stablelm"],
)
def test_families_that_would_be_read_wrongly_without_padding_are_refused(config, kind, sizes):
    """Their layers compute more than the attention that is replaced, or their head is more than one matrix."""
    set_seed(0)
    model = kind(config(**sizes, vocab_size=64, initializer_range=0.3))
    with pytest.raises(BadInput, match=f"{kind.__name__} cannot be read without padding: read so, it gives other"):
        use_packed_attention(model)


# Judges --------------------------------------------------------------------------------------------------------------


def judge_with(labels, folder):
    """An encoder with two labels; returns it as Transformers has it."""
    chat_model(folder)
    edit(folder / "tokenizer_config.json", model_max_length=64)
    (folder / "generation_config.json").unlink()
    set_seed(0)
    config = BertConfig(**SMALL, vocab_size=300, max_position_embeddings=64, initializer_range=0.3, id2label=labels)
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    return model


def test_which_of_two_labels_is_good_is_asked_where_no_name_says_so(world, tmp_path, capsys):
    """B13"""
    plain = judge_with({0: "nothate", 1: "hate"}, tmp_path / "judge")
    given = ("--model_name_or_path", world / "policy", "--dataset_name", world / "texts.jsonl")
    given += ("--reward_model_path", tmp_path / "judge")
    for label in ((), ("--reward_label", "love")):
        said = refused(capsys, "ppo", *given, *label, "--output_dir", tmp_path / "ppo")
        assert "nothate and hate" in said and "reward_label" in said
    run("ppo", *given, *SMALL_PPO, "--reward_label", "nothate", "--output_dir", tmp_path / "ppo")
    assert json.loads((tmp_path / "ppo" / "config.json").read_text())["reward_label"] == "nothate"
    assert "nothate" in (tmp_path / "ppo" / "model" / "README.md").read_text()
    ids = torch.tensor([[5, 6, 7]])
    ours, _ = models.load_reward_model(str(tmp_path / "judge"), label="nothate")
    no, yes = plain(ids).logits[0].tolist()
    assert ours(ids).logits.item() == pytest.approx(no - yes, abs=1e-5)
    # A comparison and Chat score with the label of the run.
    small = ("--num_prompts", 2, "--samples", 1, "--response_length", 4, "--ceiling_samples", 0)
    bases = ("--base_model_name_or_path", world / "policy", "--models", f"ppo={tmp_path / 'ppo'}")
    run("compare", *bases, *given[2:4], *small, "--output_dir", tmp_path / "compare")
    assert json.loads((tmp_path / "compare" / "config.json").read_text())["reward_label"] == "nothate"
    assert voices.reward_model_of(Run(tmp_path / "ppo"))[0](ids).logits.item() == pytest.approx(no - yes, abs=1e-5)


def test_a_plainly_good_label_and_a_single_one_are_not_asked_for(world, tmp_path):
    """B13"""
    judge_with({0: "Good", 1: "Bad"}, tmp_path / "judge")
    assert models.rewarded_label(models.load_reward_model(str(tmp_path / "judge"))[0]) == "Good"
    other, _ = models.load_reward_model(str(tmp_path / "judge"), label="Bad")
    assert models.rewarded_label(other) == "Bad"
    assert models.rewarded_label(models.load_reward_model(str(world / "judge"))[0]) is None
    with pytest.raises(BadInput, match="one score and no label"):
        models.load_reward_model(str(world / "judge"), label="Good")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_judge_whose_score_is_no_number_is_named(value, tmp_path):
    """A model that was given as an object has not been looked at before."""
    spoilt = classifier()
    spoilt.config._name_or_path = "someone/spoilt"
    with torch.no_grad():
        spoilt.score.weight[0, 0] = value
    trainer = quick(tmp_path, reward_model=None, reward_funcs=[classifier(), spoilt])
    with pytest.raises(BadInput, match="reward model spoilt gave -?(nan|inf) for completion 0"):
        trainer.train()


# Adapters ------------------------------------------------------------------------------------------------------------


def adapters_on(world, folder, auto, task, **settings):
    """Random LoRA adapters as PEFT saves them; returns the model that they make."""
    peft = pytest.importorskip("peft")
    more = {"num_labels": 1} if task == "SEQ_CLS" else {}
    set_seed(1)
    base = auto.from_pretrained(world / "policy", **more)
    config = peft.LoraConfig(task_type=task, r=2, init_lora_weights=False, **settings)
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(folder)
    return model


def test_a_folder_of_adapters_is_merged_onto_its_base(world, tmp_path, monkeypatch, capsys):
    """B16"""
    ids = torch.tensor([[5, 6, 7]])
    for task, auto, load in (
        ("CAUSAL_LM", AutoModelForCausalLM, models.load_policy),
        ("SEQ_CLS", AutoModelForSequenceClassification, models.load_reward_model),
    ):
        made = adapters_on(world, tmp_path / task, auto, task, target_modules=["q_proj", "up_proj"])
        given = {"trained": True} if task == "SEQ_CLS" else {}
        ours, tokenizer = load(str(tmp_path / task), **given)
        assert torch.allclose(ours(ids).logits, made(ids).logits, atol=1e-4)
        assert not hasattr(ours, "peft_config") and len(tokenizer) > 200
    given = ("--model_name_or_path", tmp_path / "CAUSAL_LM", "--reward_model_path", tmp_path / "SEQ_CLS")
    run("ppo", *given, "--dataset_name", world / "talks.jsonl", *SMALL_PPO, "--output_dir", tmp_path / "ppo")
    assert len(json.loads((tmp_path / "ppo" / "config.json").read_text())["model_revision"]) == 16
    assert "no causal language model" in refused(
        capsys, "ppo", "--model_name_or_path", tmp_path / "SEQ_CLS", *given[2:]
    )
    assert "not a reward model" in refused(capsys, "ppo", *given[:2], "--reward_model_path", tmp_path / "CAUSAL_LM")


def test_adapters_that_lack_something_are_told(world, tmp_path):
    """B16"""
    whole = tmp_path / "whole"
    adapters_on(world, whole, AutoModelForCausalLM, "CAUSAL_LM", target_modules=["q_proj"])
    for number, (spoil_it, expected) in enumerate((
        (lambda folder: edit(folder / "adapter_config.json", base_model_name_or_path="no/such"), "no/such.*cache"),
        (lambda folder: edit(folder / "adapter_config.json", base_model_name_or_path=None), "names no whole model"),
        (lambda folder: edit(folder / "adapter_config.json", base_model_name_or_path=str(whole)), "no whole model"),
        (lambda folder: edit(folder / "adapter_config.json", peft_type="WONDER"), "could not be loaded onto"),
        (lambda folder: edit(folder / "adapter_config.json", r=3), "could not be loaded onto"),
        (lambda folder: truncate(folder / "adapter_model.safetensors"), "could not be loaded onto"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
    )):  # fmt: skip
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        spoil_it(folder)
        with pytest.raises(BadInput, match=expected):
            models.load_policy(str(folder))


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_adapters_on_one_of_two_tied_layers_do_not_change_the_other(layer, world, tmp_path):
    """B17"""
    base = tmp_path / "policy"
    shutil.copytree(world / "policy", base)
    set_seed(0)
    sizes = {**SMALL, "vocab_size": 259, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.2)).save_pretrained(base)
    made = adapters_on(tmp_path, tmp_path / "adapters", AutoModelForCausalLM, "CAUSAL_LM", target_modules=[layer])
    ids = torch.tensor([[5, 6, 7]])
    before = made(ids).logits.detach()
    whole = models.merged(made).eval()
    assert torch.allclose(whole(ids).logits, before, atol=1e-4)
    whole.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(again(ids).logits, before, atol=1e-4)
    loaded, _ = models.load_policy(str(tmp_path / "adapters"))
    assert torch.allclose(loaded(ids).logits, before, atol=1e-4)


def test_layers_that_lora_cannot_adapt_are_named_before_anything_is_made(world, tmp_path, capsys):
    """B17"""
    given = ("--model_name_or_path", world / "policy", "--dataset_name", world / "texts.jsonl", "--use_peft", "true")
    for command in ("reward", "dpo"):
        words = (command, *given, "--lora_target_modules", "input_layernorm", "--output_dir", tmp_path / "run")
        assert "no input_layernorm" in refused(capsys, *words)
    assert not (tmp_path / "run").exists()


# Models that are compared --------------------------------------------------------------------------------------------


def with_rows(folder):
    """More rows in the embedding than the base has, as some save them for speed; the tokenizer is the same."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(320)
    model.save_pretrained(folder)


def with_short_context(folder):
    edit(folder / "config.json", max_position_embeddings=40)


@pytest.mark.parametrize(
    ("change", "expected"),
    [(with_rows, "other chooses among 320 tokens and the base among 259"), (with_short_context, "leaves no room")],
)
def test_models_whose_answers_cannot_be_compared_are_told_before_anything_is_made(
    change, expected, world, tmp_path, capsys
):
    shutil.copytree(world / "policy", tmp_path / "other")
    change(tmp_path / "other")
    given = ("--reward_model_path", world / "judge", "--dataset_name", world / "talks.jsonl")
    for base, other in ((world / "policy", tmp_path / "other"), (tmp_path / "other", world / "policy")):
        models_ = ("--base_model_name_or_path", base, "--models", f"other={other}", "--response_length", 32)
        said = refused(capsys, "compare", *models_, *given, "--output_dir", tmp_path / "run")
        assert re.search(expected if base == world / "policy" else "other chooses|leaves no room", said), said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("room", "loadings"), [(2_000, 1), (0.2, 2)])
def test_a_comparison_loads_a_model_once_while_there_is_room(room, loadings, world, tmp_path, monkeypatch):
    loaded, load_policy = Counter(), models.load_policy
    monkeypatch.setattr(models, "load_policy", lambda path: (loaded.update([path]), load_policy(path))[1])
    monkeypatch.setattr(comparison, "KEPT_MB", room)
    for name in "ab":
        shutil.copytree(world / "policy", tmp_path / name)
    given = ("--reward_model_path", world / "judge", "--dataset_name", world / "texts.jsonl")
    models_ = ("--base_model_name_or_path", world / "policy", "--models", *(f"{x}={tmp_path / x}" for x in "ab"))
    small = ("--num_prompts", 2, "--samples", 1, "--response_length", 4, "--ceiling_samples", 0)
    run("compare", *models_, *given, *small, "--output_dir", tmp_path / "compare")
    assert loaded == {str(world / "policy"): 1, str(tmp_path / "a"): 1, str(tmp_path / "b"): loadings}


# Training that diverges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["reward", "dpo"])
def test_a_training_that_diverges_says_so_and_saves_nothing(command, world, tmp_path, capsys):
    """B18"""
    model = AutoModelForCausalLM.from_pretrained(world / "policy")
    with torch.no_grad():
        for layer in (model.model.layers[0].self_attn.q_proj, model.model.layers[0].self_attn.k_proj):
            layer.weight.mul_(1e25)  # finite, but not what is computed with it
    shutil.copytree(world / "policy", tmp_path / "policy")
    model.save_pretrained(tmp_path / "policy")
    given = ("--model_name_or_path", tmp_path / "policy", "--dataset_name", world / "texts.jsonl", "--save_steps", 1)
    assert main(list(map(str, (command, *given, *SMALL_PAIRS, "--output_dir", tmp_path / "run")))) == 2
    assert "not finite at step" in capsys.readouterr().err
    assert Run(tmp_path / "run").status()["state"] == "diverged"
    assert not list((tmp_path / "run").rglob("*.safetensors"))


# Chat ----------------------------------------------------------------------------------------------------------------


def test_a_sharded_model_that_is_replaced_answers_from_then_on(world, tmp_path):
    """U10"""
    folder = tmp_path / "policy"
    shutil.copytree(world / "policy", folder)
    (folder / "model.safetensors").unlink()
    times = [path.stat().st_mtime_ns for path in (world / "policy").iterdir()]
    found = []
    for seed in (0, 1):
        set_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=259, max_position_embeddings=32))
        model.save_pretrained(folder, max_shard_size="10KB")
        for path in folder.iterdir():
            os.utime(path, ns=(times[0], times[0]))  # as some copies leave it
        found.append(voices.load("policy", str(folder), folder)[2])
    assert len(list(folder.glob("model-*.safetensors"))) > 1 and found[0] != found[1]


def test_a_short_context_gives_a_shorter_answer(world, tmp_path):
    """U14"""
    folder = tmp_path / "policy"
    shutil.copytree(world / "policy", folder)
    edit(folder / "config.json", max_position_embeddings=32)
    edit(folder / "tokenizer_config.json", chat_template="{{ messages[-1].content }}")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    voice = voices.Voice(*models.load_policy(str(folder)), "PPO")
    asked = voices.ask({"ppo": voice}, "Hello there!", [])
    *_, (said, ids) = voices.all_answers({"ppo": voice}, asked)
    assert said["ppo"]["done"] and 0 < len(ids["ppo"]) <= 32 - len(asked["ppo"].ids)
    with pytest.raises(BadInput, match="reads about 16 at most"):
        voices.ask({"ppo": voice}, "Hello there, how are you?", [])


# What a run records of its data --------------------------------------------------------------------------------------


def test_pairs_that_differ_only_in_their_margins_have_another_fingerprint(world, tmp_path):
    rows, found = [json.loads(line) for line in (world / "texts.jsonl").read_text().splitlines()], set()
    for margin in (1, 2):
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({**row, "margin": margin}) + "\n" for row in rows))
        given = ("--model_name_or_path", world / "policy", "--dataset_name", tmp_path / "pairs.jsonl")
        run("reward", *given, *SMALL_PAIRS, "--max_steps", 1, "--output_dir", tmp_path / str(margin))
        found.add(Run(tmp_path / str(margin)).config()["data_fingerprint"])
    assert len(found) == 2
