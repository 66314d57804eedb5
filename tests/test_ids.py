"""Where prompts and answers become ids: reward training reads what PPO scores, whatever template and tokenizer.

The templates are written here after the habits of known families; the tokenizer knows bytes and a few special tokens.
"""

import json
import warnings

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    set_seed,
)
from worlds import settings_for

from rlhf.config import BadInput, CompareArguments, DemoArguments, PPOArguments, RewardArguments, SweepArguments, build
from rlhf.data.preview import preview
from rlhf.models.generate import generate, stream
from rlhf.models.prompts import PromptReader, TemplateRefused, end_ids, fitting
from rlhf.models.scoring import AnswerScorer, score_ids, score_padded
from rlhf.ppo import PPOTrainer
from rlhf.reward import tokenized
from rlhf.write.tables import preview_table


SPECIAL = ["<pad>", "<bos>", "<eos>", "<turn>", "<end>"]
PAD, BOS, EOS, TURN, END = range(5)

TURNS = "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}END{% endfor %}"
TURNS += "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
THINKING = (
    "{% for m in messages %}<turn>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
TEMPLATES = {
    "bos by template": "{{ bos_token }}" + TURNS.replace("END", "<eos>"),
    "end followed by a line break": TURNS.replace("END", "<eos>\n"),
    "another end than the tokenizer's": TURNS.replace("END", "<end>\n"),
    "end never written": TURNS.replace("END", "\n"),
    "thinking": THINKING,
    "trimmed": TURNS.replace("m.content", "m.content | trim").replace("END", "<eos>\n"),
    "no generation prompt": "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>{% endfor %}",
    "reads no system message": "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% endfor %}" + TURNS.replace("END", "<eos>"),
}
ADDED = {"none": "$A", "bos": "<bos> $A", "eos": "$A <eos>", "both": "<bos> $A <eos>"}
"""What the tokenizer's post-processor adds to a text."""


def tokenizer_with(template=None, added="none", merges=()):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *letters, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=ADDED[added], special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    fast.chat_template = TEMPLATES.get(template)
    return fast


def llama(kind=LlamaForCausalLM, size=270, **config):
    set_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    return kind(LlamaConfig(vocab_size=size, max_position_embeddings=256, **shape, **ids, **config)).eval()


def talk(system=False, answer="It was good."):
    head = [{"role": "system", "content": "Be brief."}] if system else []
    return [*head, {"role": "user", "content": "Was it?"}], [{"role": "assistant", "content": answer}]


def training_ids(reader, prompts, answers):
    """What reward training reads of each pair."""
    side = {"prompt": prompts, "chosen": answers, "rejected": answers}
    return list(tokenized(Dataset.from_dict(side), reader, 200)["chosen_ids"])


def scored_ids(monkeypatch, reader, judge_tokenizer, prompt, *answers):
    """What PPO and comparison score of each of the policy's answers."""
    seen = []
    monkeypatch.setattr(
        "rlhf.models.scoring.score_ids", lambda model, rows, **more: seen.extend(rows) or torch.zeros(len(rows))
    )
    scorer = AnswerScorer(llama(LlamaForSequenceClassification, num_labels=1), judge_tokenizer, reader)
    scorer([reader.read(prompt)] * len(answers), answers, [True] * len(answers))
    return seen


# What reward training reads is what PPO scores ---------------------------------------------------------------------


@pytest.mark.parametrize("other", [False, True], ids=["same tokenizer", "other tokenizer"])
@pytest.mark.parametrize("kwargs", [None, {"enable_thinking": False}], ids=["no kwargs", "kwargs"])
@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("template", [*TEMPLATES, None])
def test_reward_training_reads_what_ppo_scores(template, added, kwargs, other, monkeypatch):
    """B02, B03, B06: begin and end once, an empty thought only where the policy is asked with one.

    Without a system message and, where the template reads one, with it.
    """
    policy = tokenizer_with(template, added)
    judge = tokenizer_with(template, added, merges=[("o", "o")]) if other else policy
    reader = PromptReader(policy, None, kwargs, [EOS, END])
    systems = [False, True]
    if template == "reads no system message":
        with pytest.raises(BadInput, match="System role not supported"):
            reader.read(talk(systems.pop())[0])
    prompts, answers = zip(*(talk(system) if template else ("Was it? ", "Good.") for system in systems), strict=True)
    for prompt, answer, read in zip(
        prompts, answers, training_ids(PromptReader(judge, None, kwargs), prompts, answers), strict=True
    ):
        # Without a template the space at the prompt's end is the answer's
        text = answer[0]["content"] if template else " " + answer
        said = policy(text, add_special_tokens=False)["input_ids"]
        assert scored_ids(monkeypatch, reader, judge, prompt, [*said, EOS], [*said, END]) == [read, read]
        begins = {"bos by template": 1, None: int(added in ("bos", "both"))}.get(template, 0)
        assert read.count(BOS) == begins
        assert read[-1] == (END if template in ("another end than the tokenizer's", "thinking") else EOS)
        assert read[-2] not in (EOS, END)
        asked = PromptReader(judge, None, kwargs).encode(prompt)
        assert read[: len(asked)] == asked
        if template == "thinking":
            assert judge.decode(read).count("<think>") == (kwargs is not None)


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("text", ["Was it?", "<bos>Was it?", "<bos><bos>Was it?"])
def test_a_text_begins_once_and_a_prompt_does_not_end(text, added):
    """B02, B03."""
    reader = PromptReader(tokenizer_with(added=added), None)
    ids = reader.encode(text)
    assert ids.count(BOS) == int(added in ("bos", "both") or "<bos>" in text) and ids[-1] != EOS
    for answer in (" Yes.", " Yes.<eos>"):
        pair = reader.pair(text, answer)
        assert pair.prompt_ids == ids == pair.ids[: len(ids)]
        assert pair.ids.count(EOS) == 1 and pair.ids[-1] == EOS
        assert EOS not in reader.pair(text, " Yes.", ended=False).ids


def test_an_end_token_that_the_prompt_itself_holds_stays():
    """B03: only what the tokenizer adds is left out."""
    assert PromptReader(tokenizer_with(added="both"), None).encode("one<eos>two<eos>").count(EOS) == 2


def test_a_tokenizer_without_an_end_token_gets_a_sentence():
    """B04: texts and conversations alike, for PPO needs one whatever the template writes."""
    for template in (None, "another end than the tokenizer's", "end never written"):
        tokenizer = tokenizer_with(template)
        tokenizer.eos_token = None
        prompt, answer = talk() if template else ("Was it?", " Yes.")
        with pytest.raises(BadInput, match="has no end token"):
            PromptReader(tokenizer, None).pair(prompt, answer)


# Templates that refuse ---------------------------------------------------------------------------------------------


def test_rows_that_the_template_refuses_are_left_out_and_counted():
    """B01: with the template's own complaint and the row; where it refuses all, one sentence."""
    reader = PromptReader(tokenizer_with("reads no system message"), 200)
    talks = [talk(), talk(system=True), talk()]
    with pytest.warns(UserWarning, match="1 of 3 rows were left out, the first of them row 2: .*System role not supp"):
        assert len(fitting([prompt for prompt, _ in talks], reader)) == 2
    sides = {"prompt": [p for p, _ in talks], "chosen": [a for _, a in talks], "rejected": [a for _, a in talks]}
    with pytest.warns(UserWarning, match="row 2: .*System role not supported"):
        assert len(tokenized(Dataset.from_dict(sides), reader, 200)) == 2
    refused = [talk(system=True)[0]] * 2
    with pytest.raises(BadInput, match="None of the 2 rows can be used, and row 1 cannot: .*System role"):
        fitting(refused, reader)
    with pytest.raises(TemplateRefused, match="System role not supported.*Be brief"):
        PPOTrainer(llama(), settings_for("unused"), reader.tokenizer, reward_funcs=len, train_dataset=refused)


@pytest.mark.parametrize("template", ["{{ 1 + messages[0].content }}", "{% for %}", "{{ nothing.at.all }}"])
def test_whatever_a_template_raises_is_a_sentence(template):
    """B01: wrong types, syntax, names that are not there."""
    tokenizer = tokenizer_with()
    tokenizer.chat_template = template
    with pytest.raises(TemplateRefused, match=r"The chat template refuses a conversation \(.+\): 'Was it\?'"):
        PromptReader(tokenizer, None).encode(talk()[0])


@pytest.mark.parametrize("template", ["hello", " ", "{% for m in messages %}{{ m.role }}{% endfor %}"])
def test_a_template_that_leaves_out_what_people_say_is_refused(template):
    tokenizer = tokenizer_with()
    tokenizer.chat_template = template
    with pytest.raises(TemplateRefused, match="it leaves out what the user says"):
        PromptReader(tokenizer, None).encode(talk()[0])


@pytest.mark.parametrize("ends", ["2", [[2]], [2, "<end>"]])
def test_ends_that_are_no_ids_get_a_sentence(ends):
    model = llama()
    model.generation_config.eos_token_id, model.generation_config._from_model_config = ends, False
    with pytest.raises(BadInput, match="must list token ids"):
        end_ids(model, tokenizer_with())


def test_a_preview_says_what_is_refused_and_how_many_boundaries_move(tmp_path):
    """B01, B07."""
    llama().save_pretrained(tmp_path / "model")
    tokenizer_with("reads no system message", merges=[("?", "Y")]).save_pretrained(tmp_path / "model")
    rows = []
    for number in range(20):
        prompt, chosen = talk(number % 4 == 0, f"Good {number}.")
        prompt[-1]["content"] += str(number)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": talk(answer="Bad.")[1]})
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = preview_table(preview(str(file), str(tmp_path / "model")))
    assert "pairs will be left out. The chat template refuses a conversation (System role not supported)" in said
    file = tmp_path / "texts.jsonl"
    rows = [{"prompt": f"{n}?", "chosen": "Yes." if n < 5 else " Yes.", "rejected": " No."} for n in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = preview(str(file), str(tmp_path / "model"))
    assert 3 <= found.moved <= 5
    assert f"{found.moved} of {found.measured} pairs would be cut into other tokens" in preview_table(found)


def test_a_boundary_that_moves_is_read_as_ppo_samples_it():
    """B07: the prompt's ids stay; a space at its end goes to the answer, as where the prompt is implicit."""
    reader = PromptReader(tokenizer_with(merges=[("?", "Y"), ("Ġ", "Y")]), None)
    pair = reader.pair("Was it?", "Yes.")
    assert pair.moved and pair.prompt_ids == reader.encode("Was it?")
    pair = reader.pair("Was it? ", "Yes.")
    assert not pair.moved and pair.ids == reader.pair("Was it?", " Yes.").ids
    assert reader.read("Was it? ").ids == pair.prompt_ids and reader.read("Was it? ").raw == "Was it? "


# How answers end ---------------------------------------------------------------------------------------------------


def ends_with(token):
    """A policy that says one token, and lists it beside the tokenizer's own end."""
    model = llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.eye(270)[token] * 50)
    model.generation_config.eos_token_id = [EOS, token]
    return model


@pytest.mark.parametrize("token", [END, 100], ids=["special", "any"])
def test_an_answer_ends_at_every_listed_id(token, tmp_path):
    """B05: sampling, the stream of Chat, PPO's penalty, and the text."""
    model, tokenizer = ends_with(token), tokenizer_with()
    ends = end_ids(model, tokenizer)
    assert ends == [EOS, token]
    settings = {"max_new_tokens": 5, "temperature": 1.0, "eos_id": ends}
    generation = generate(model, [[BOS, 9]], generator=torch.Generator(), **settings)
    assert generation.lists() == [[token]] and generation.ended.tolist() == [True]
    assert list(stream(model, [BOS, 9], **settings)) == [[token]]
    assert PromptReader(tokenizer, None, None, ends).text([70, token]) == tokenizer.decode([70])
    heard = []

    def reward(completions):
        heard.extend(completions)
        return [0.0] * len(completions)

    args = settings_for(tmp_path, missing_eos_penalty=1.0, total_episodes=8)
    trainer = PPOTrainer(model, args, tokenizer, reward_funcs=reward, train_dataset=["Was it?"] * 8)
    trainer.train()
    assert trainer.state.log_history[0]["objective/eos_penalty"] == 0
    assert trainer.state.log_history[0]["val/num_eos_tokens"] == 8 and set(heard) == {""}


def test_an_id_that_only_the_architectures_defaults_name_ends_nothing():
    """B05: Transformers makes up a generation config from the model's."""
    model = llama()
    model.generation_config.eos_token_id, model.generation_config._from_model_config = 200, True
    assert end_ids(model, tokenizer_with()) == [EOS]
    model.generation_config._from_model_config = False
    assert end_ids(model, tokenizer_with()) == [EOS, 200]


def test_chat_ends_at_every_listed_id_and_shows_no_half_characters():
    """B05, B41: held back until it is whole, and dropped where the answer is cut."""
    from rlhf.ui import voices

    tokenizer = tokenizer_with()
    ids = tokenizer("né 🙂", add_special_tokens=False)["input_ids"]
    reader = PromptReader(tokenizer, None)
    shown = [reader.text(ids[:length]) for length in range(1, len(ids) + 1)]
    assert shown == ["n", "n", "né", "né ", "né ", "né ", "né ", "né 🙂"]
    model = ends_with(END)
    voice = voices.Voice(model, tokenizer, "PPO")
    *_, (said, written) = voices.all_answers({"ppo": voice}, voices.ask({"ppo": voice}, "Was it?", []))
    assert written["ppo"] == [END] and said["ppo"]["text"] == ""
    judge = llama(LlamaForSequenceClassification, num_labels=1)
    asked = voices.ask({"ppo": voice}, "Was it?", [])
    voices.give_scores((judge, tokenizer), voice, asked, said, written)
    expected = score_ids(judge, [[*asked["ppo"].ids, EOS]]).item()
    assert said["ppo"]["score"] == pytest.approx(expected, abs=1e-5)


def test_chat_says_what_the_template_says():
    """B01."""
    from rlhf.ui import voices

    tokenizer = tokenizer_with()
    tokenizer.chat_template = "{{ raise_exception('No questions') }}"
    with pytest.raises(BadInput, match="No questions"):
        voices.ask({"ppo": voices.Voice(llama(), tokenizer, "PPO")}, "Was it?", [])


# Settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    ["enable_thinking=false date='1 May'", '{"enable_thinking": false, "date": "1 May"}',
     {"enable_thinking": False, "date": "1 May"}],
)  # fmt: skip
def test_template_kwargs_are_a_setting_of_every_command(given):
    """B06."""
    expected = {"enable_thinking": False, "date": "1 May"}
    for config in (RewardArguments, PPOArguments, CompareArguments, DemoArguments):
        assert build(config, {"chat_template_kwargs": given}).chat_template_kwargs == expected
    demo = build(DemoArguments, {"chat_template_kwargs": given})
    sweep = build(SweepArguments, {"chat_template_kwargs": given, "reward_model_path": "x"})
    for handed in (
        demo.reward_arguments(None), demo.ppo_arguments(None, None), demo.compare_arguments(None, None, None),
        sweep.ppo_arguments(0.1, 0, None), sweep.compare_arguments({}, "out"),
    ):  # fmt: skip
        assert handed.chat_template_kwargs == expected


@pytest.mark.parametrize("given", ["thinking", "{1}", "[1]", "=false", 7])
def test_template_kwargs_that_are_none_get_a_sentence(given):
    """B06."""
    with pytest.raises(BadInput, match="^chat_template_kwargs must be "):
        build(PPOArguments, {"chat_template_kwargs": given})


def test_template_kwargs_cannot_take_the_programs_own_place():
    """B06."""
    for name in ("tokenize", "chat_template", "add_generation_prompt"):
        with pytest.raises(BadInput, match=f"cannot set {name}"):
            PromptReader(tokenizer_with(), None, {name: "x"})


# Encoders as judges ------------------------------------------------------------------------------------------------


def encoder_tokenizer(segments):
    tokenizer = tokenizer_with()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <end>", pair="<bos> $A <end> $B:1 <end>:1", special_tokens=[("<bos>", BOS), ("<end>", END)]
    )
    tokenizer.model_input_names = ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]
    return tokenizer


SMALL = {"vocab_size": 270, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_labels": 1}
SMALL |= {"num_attention_heads": 2, "initializer_range": 0.5}


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_a_long_text_is_cut_to_the_positions_a_roberta_has(padding):
    """B12: positions are counted from after that of the pad token."""
    config = RobertaConfig(max_position_embeddings=40 + padding + 1, pad_token_id=padding, type_vocab_size=1, **SMALL)
    judge, tokenizer = RobertaForSequenceClassification(config).eval(), encoder_tokenizer(segments=False)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    long = score_padded(judge, tokenizer, ["a" * 500])
    assert torch.allclose(long, score_padded(judge, tokenizer, ["a" * 38]), atol=1e-5)  # 40 with begin and end
    assert not torch.allclose(long, score_padded(judge, tokenizer, ["a" * 37]), atol=1e-6)


@pytest.mark.parametrize("template", [None, "thinking"])
def test_a_judge_of_two_segments_reads_prompt_and_answer_as_two(template):
    """B14."""
    set_seed(0)
    judge = BertForSequenceClassification(BertConfig(max_position_embeddings=64, **SMALL)).eval()
    tokenizer, policy = encoder_tokenizer(segments=True), tokenizer_with(template)
    reader = PromptReader(policy, None)
    prompt = talk()[0] if template else "Was it?"
    said = [*policy(" Yes.", add_special_tokens=False)["input_ids"], EOS]
    score = AnswerScorer(judge, tokenizer, reader)([reader.read(prompt)], [said], [True])
    batch = tokenizer("Was it?", "Yes.", return_tensors="pt")
    assert set(batch["token_type_ids"][0].tolist()) == {0, 1}
    assert torch.allclose(score, judge(**batch).logits[:, 0], atol=1e-5)


def test_nothing_is_left_out_without_a_reason():
    """The warnings above come only with rows that were left out."""
    reader = PromptReader(tokenizer_with("thinking"), 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(fitting([talk()[0], talk(system=True)[0]], reader)) == 2


def test_the_commands_read_and_end_alike(tmp_path, command):
    """B05, B06: a thinking model with two end ids from reward training to the comparison, asked without thoughts."""
    from rlhf.runs.directory import Run

    model = llama(tie_word_embeddings=False)
    model.generation_config.eos_token_id = [EOS, END]
    model.save_pretrained(tmp_path / "model")
    tokenizer_with("thinking").save_pretrained(tmp_path / "model")
    file = tmp_path / "talks.jsonl"
    rows = []
    for number in range(12):
        prompt, chosen = talk(answer="Yes.")
        prompt[0]["content"] += str(number)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": talk(answer="No.")[1]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("--dataset_name", file, "--chat_template_kwargs", "enable_thinking=false")
    small = ("--max_steps", 1, "--per_device_train_batch_size", 4)
    done = command("reward", "--model_name_or_path", tmp_path / "model", *given, *small, "--output_dir", "reward")
    assert done.returncode == 0, done.stderr[-2000:]
    few = ("--response_length", 4, "--ceiling_samples", 0)
    done = command(
        "ppo", "--model_name_or_path", tmp_path / "model", *given, *small, *few, "--reward_model_path", "reward",
        "--allow_chance_reward", "true", "--output_dir", "ppo",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert Run(tmp_path / "ppo").config()["chat_template_kwargs"] == {"enable_thinking": False}
    assert json.loads((tmp_path / "ppo" / "model" / "generation_config.json").read_text())["eos_token_id"] == [
        EOS,
        END,
    ]
    done = command(
        "compare", "--base_model_name_or_path", tmp_path / "model", "--models", "ppo=ppo", *given, *few,
        "--num_prompts", 2, "--samples", 8, "--output_dir", "compare",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "\N{REPLACEMENT CHARACTER}" not in (tmp_path / "compare" / "scores.csv").read_text(encoding="utf-8")
