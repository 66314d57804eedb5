"""Models as people name them: every family through the real commands, from a Hub cache in offline mode.

The models are small and random (`hub.py`); names, files, tokenizers and architectures are those of the real ones.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import hub
import pytest
import torch
from processes import keep_signals
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from worlds import CHATML

from rlhf import models
from rlhf.__main__ import main
from rlhf.config import BadInput, DemoArguments, build
from rlhf.config.recipes import FOLDER, names, read_recipe
from rlhf.models.prompts import PromptReader
from rlhf.models.scoring import AnswerScorer, score_ids


ROOT = Path(__file__).resolve().parent.parent
CAUSAL = (hub.GPT2, hub.SMOLLM, hub.QWEN, hub.LLAMA)
WITH_TEMPLATE = (hub.SMOLLM, hub.QWEN)
SMALL_REWARD = ("--max_steps", "2", "--per_device_train_batch_size", "4", "--eval_steps", "2", "--logging_steps", "1")
SMALL_PPO = ("--max_steps", "2", "--per_device_train_batch_size", "4", "--response_length", "8")
SMALL_PPO += ("--allow_chance_reward", "true", "--ceiling_samples", "2", "--ceiling_prompts", "2")
SMALL_COMPARISON = ("--num_prompts", "4", "--samples", "1", "--response_length", "8", "--ceiling_samples", "2")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The Hub as earlier downloads left it in the cache; the commands run in this process and leave no handlers."""
    folder = hub.make_cache(tmp_path_factory.mktemp("home"))
    with keep_signals(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Preferences as texts, the same as conversations, and reviews without preferences."""
    folder = tmp_path_factory.mktemp("data")
    texts, talks, reviews = [], [], []
    for number, text in enumerate(hub.TEXTS[:40]):
        chosen, rejected = " It was wonderful.", " Nobody laughed, and that was enough."
        texts.append({"prompt": f"{number}: {text}", "chosen": chosen, "rejected": rejected})
        talks.append(
            {
                "prompt": [{"role": "user", "content": f"{number}: {text}"}],
                "chosen": [{"role": "assistant", "content": chosen.strip()}],
                "rejected": [{"role": "assistant", "content": rejected.strip()}],
            }
        )
        reviews.append({"text": f"{number} " + text * 3, "label": 0})
    for name, rows in (("texts", texts), ("talks", talks), ("reviews", reviews)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def run(*words):
    assert main(list(map(str, words))) == 0


def sentence(capsys, *words):
    """What a command that refuses says."""
    assert main(list(map(str, words))) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    return said


@pytest.fixture(scope="module", params=CAUSAL)
def trained(request, data, tmp_path_factory):
    """A family's name, and its runs of `reward`, `ppo` and `compare`, conversations where there is a chat template."""
    name, out = request.param, tmp_path_factory.mktemp("runs")
    file = data / ("talks.jsonl" if name in WITH_TEMPLATE else "texts.jsonl")
    given = ("--model_name_or_path", name, "--dataset_name", file)
    run("reward", *given, *SMALL_REWARD, "--output_dir", out / "reward")
    run("ppo", *given, *SMALL_PPO, "--reward_model_path", out / "reward", "--output_dir", out / "ppo")
    models_ = ("--base_model_name_or_path", name, "--models", f"ppo={out / 'ppo'}", "best-of-2")
    run("compare", *models_, "--dataset_name", file, *SMALL_COMPARISON, "--output_dir", out / "compare")
    return name, out


# Every family ------------------------------------------------------------------------------------------------------


def test_a_family_goes_through_reward_ppo_and_comparison(trained):
    name, out = trained
    updates = [line for line in lines(out / "ppo") if "objective/kl" in line]
    assert abs(updates[0]["objective/kl"]) < 1e-3  # decoding and reading agree before anything is learned
    made = AutoModelForCausalLM.from_pretrained(out / "ppo" / "model")
    base = AutoModelForCausalLM.from_pretrained(name)
    changed = [key for key, value in base.state_dict().items() if not torch.equal(value, made.state_dict()[key])]
    assert changed and type(made) is type(base)
    found = json.loads((out / "compare" / "summary.json").read_text())["splits"]["test"]
    assert set(found["models"]) == {"base", "ppo", "best-of-2"}
    assert found["models"]["ppo"]["kl"]["value"] > 0
    config = json.loads((out / "ppo" / "config.json").read_text())
    assert len(config["model_revision"]) == 40  # the commit


def test_training_scores_a_text_where_everything_else_does(trained):
    # TRL's loss on the held-out pairs is measured padded; the report reads them without pads.
    evaluated = [line["eval_loss"] for line in lines(trained[1] / "reward") if "eval_loss" in line]
    assert len(evaluated) == 2 and evaluated[0] == pytest.approx(evaluated[1], abs=1e-4)


def test_plain_transformers_gives_the_same_score(trained):
    folder = trained[1] / "reward" / "model"
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("As I said, the film was dull." + tokenizer.eos_token, return_tensors="pt")
    ours, _ = models.load_reward_model(str(folder), trained=True)
    score = score_ids(ours, ids["input_ids"].tolist())
    assert score.tolist() == pytest.approx(plain(**ids).logits[0].tolist(), abs=1e-4)


def test_the_end_of_a_text_counts_although_the_pad_token_is_the_end_token(trained):
    model, tokenizer = models.load_reward_model(str(trained[1] / "reward"), trained=True)
    ids = tokenizer("It was wonderful.")["input_ids"]
    unended, ended = score_ids(model, [ids, [*ids, tokenizer.eos_token_id]]).tolist()
    assert abs(unended - ended) > 1e-3


# Judges of other kinds ---------------------------------------------------------------------------------------------


def sentiment_by_hand(texts):
    """Log-odds of POSITIVE, a text at a time, from the classifier as Transformers loads it."""
    plain = AutoModelForSequenceClassification.from_pretrained(hub.SENTIMENT)
    tokenizer = AutoTokenizer.from_pretrained(hub.SENTIMENT)
    logits = [plain(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    return [(both[1] - both[0]).item() for both in logits]


def test_a_sentiment_classifiers_score_is_the_log_odds_of_positive():
    _, tokenizer = models.load_policy(hub.GPT2)
    reader = PromptReader(tokenizer, None)
    scorer = AnswerScorer(*models.load_reward_model(hub.SENTIMENT), reader)
    prompts = [reader.read("The film"), reader.read("To be honest, the plan")]
    answers = [" was wonderful, and I would see it again.", " was dull."]
    said = [tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id] for answer in answers]
    scores = scorer(prompts, said, [True, True]).tolist()
    whole = [prompt.raw + answer for prompt, answer in zip(prompts, answers, strict=True)]
    assert scores == pytest.approx(sentiment_by_hand(whole), abs=1e-4)


def test_the_label_that_is_called_positive_counts_wherever_it_stands(tmp_path):
    swapped = tmp_path / "swapped"
    AutoTokenizer.from_pretrained(hub.SENTIMENT).save_pretrained(swapped)
    model = AutoModelForSequenceClassification.from_pretrained(hub.SENTIMENT)
    model.config.id2label = {0: "positive", 1: "negative"}
    model.save_pretrained(swapped)
    ids = torch.tensor([[2, 103, 125, 3]])
    one, other = (models.load_reward_model(name)[0](ids).logits.item() for name in (hub.SENTIMENT, str(swapped)))
    assert one == pytest.approx(-other, abs=1e-5) and abs(one) > 1e-3


def test_films_are_reviewed_against_a_sentiment_classifier(data, tmp_path):
    given = ("--dataset_name", data / "reviews.jsonl", "--prompt_column", "text", "--prompt_words", 4)
    given += ("--reward_model_path", hub.SENTIMENT)
    run("ppo", "--model_name_or_path", hub.GPT2_IMDB, *given, *SMALL_PPO, "--output_dir", tmp_path / "ppo")
    contenders = ("--base_model_name_or_path", hub.GPT2_IMDB, "--models", f"ppo={tmp_path / 'ppo'}")
    run("compare", *contenders, *given, *SMALL_COMPARISON, "--output_dir", tmp_path / "compare")
    samples = [json.loads(line) for line in (tmp_path / "ppo" / "samples.jsonl").read_text().splitlines()]
    assert all(len(sample["prompt"].split()) == 4 for sample in samples)
    assert (tmp_path / "compare" / "summary.json").exists()


def test_a_reward_model_of_another_family_reads_the_text_with_its_own_tokenizer(trained):
    policy_tokenizer = models.load_tokenizer(hub.LLAMA)
    model, tokenizer = models.load_reward_model(str(trained[1] / "reward"), trained=True)
    reader = PromptReader(policy_tokenizer, None)
    answer = policy_tokenizer(" was dull.", add_special_tokens=False)["input_ids"]
    prompt = reader.read("The film")
    ended, unended = AnswerScorer(model, tokenizer, reader)(
        [prompt] * 2, [[*answer, policy_tokenizer.eos_token_id], answer], [True, False]
    ).tolist()
    text = "The film was dull."
    expected = score_ids(model, tokenizer([text + tokenizer.eos_token, text])["input_ids"]).tolist()
    assert [ended, unended] == pytest.approx(expected, abs=1e-5)


def test_the_chat_scores_answers_with_such_a_judge():
    from rlhf.ui import voices

    policy, tokenizer = models.load_policy(hub.GPT2)
    said = {"base": {}, "ppo": {}}
    written = {"base": tokenizer(" was dull.")["input_ids"], "ppo": tokenizer(" was wonderful.")["input_ids"]}
    voice = voices.Voice(policy, tokenizer, "PPO")
    asked = voices.ask({"base": voice, "ppo": voice}, "The film", [])
    voices.give_scores(models.load_reward_model(hub.SENTIMENT), voice, asked, said, written)
    expected = sentiment_by_hand(["The film was dull.", "The film was wonderful."])
    assert [said["base"]["score"], said["ppo"]["score"]] == pytest.approx(expected, abs=1e-4)


def test_in_a_conversation_each_model_reads_its_own_answers():
    from rlhf.ui import voices

    model, tokenizer = models.load_policy(hub.SMOLLM)
    both = {name: voices.Voice(model, tokenizer, name) for name in ("base", "ppo")}
    turns = [{"question": "Was it <|im_end|>good?", "base": {"text": "Dull."}, "ppo": {"text": "Wonderful."}}]
    asked = voices.ask(both, "Why <|im_end|> so?", turns)
    assert [message["content"] for message in asked["ppo"].raw][1:] == ["Wonderful.", "Why   so?"]
    begin, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    for name, said in (("base", "Dull."), ("ppo", "Wonderful.")):
        ids = asked[name].ids
        assert said in tokenizer.decode(ids) and ids.count(begin) == 4  # three messages, and the one that is to come
        assert ids.count(end) == 3
    *_, (said, written) = voices.all_answers(both, asked)
    assert said["base"]["done"] and written["base"] != written["ppo"]
    assert voices.ask(both, "Why so?", [])["base"].ids == voices.ask(both, "Why so?", [])["ppo"].ids


def test_only_models_with_a_chat_template_of_their_own_remember(tmp_path):
    from rlhf.runs.directory import Run
    from rlhf.ui import voices

    for name, template, remembers in ((hub.SMOLLM, True, True), (hub.LLAMA, False, False), ("everyday", True, False)):
        folder = tmp_path / name.split("/")[-1]
        (folder / "model").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"kind": "ppo", "model_name_or_path": name}))
        (folder / "status.json").write_text(json.dumps({"kind": "ppo"}))
        (folder / "model" / "config.json").write_text("{}")
        if template:
            (folder / "model" / "chat_template.jinja").write_text(CHATML)
        assert voices.remembers(Run(folder)) is remembers


def test_models_of_two_vocabularies_are_not_compared(capsys):
    words = ("compare", "--models", f"other={hub.SMOLLM}", "--base_model_name_or_path", hub.GPT2)
    said = sentence(capsys, *words, "--reward_model_path", hub.SENTIMENT)
    assert "other has another vocabulary than the base" in said


# LoRA and bfloat16 -------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora_trains_adapters_and_saves_plain_models(data, tmp_path, dtype):
    given = ("--model_name_or_path", hub.SMOLLM, "--dataset_name", data / "talks.jsonl", "--use_peft", "true")
    given += ("--dtype", dtype, "--lora_r", 2, "--learning_rate", 1e-2)
    run("reward", *given, *SMALL_REWARD, "--output_dir", tmp_path / "reward")
    run("ppo", *given, *SMALL_PPO, "--reward_model_path", tmp_path / "reward", "--output_dir", tmp_path / "ppo")
    base = AutoModelForCausalLM.from_pretrained(hub.SMOLLM).state_dict()
    for folder, loader in (
        (tmp_path / "reward" / "model", AutoModelForSequenceClassification),
        (tmp_path / "ppo" / "model", AutoModelForCausalLM),
    ):
        assert not list(folder.glob("adapter*"))
        made = loader.from_pretrained(folder).state_dict()
        assert not any("lora" in key for key in made)
        weight = "model.layers.0.self_attn.q_proj.weight"
        change = made[weight].float() - base[weight]
        if dtype == "float32":
            assert 1 <= torch.linalg.matrix_rank(change, atol=1e-5) <= 2
        assert change.abs().max() > 1e-4
        embedding = "model.embed_tokens.weight"
        assert torch.allclose(made[embedding].float(), base[embedding], atol=0.01)  # not trained


@pytest.mark.process
def test_the_new_score_head_is_trained_beside_the_adapters(data, tmp_path):
    given = ("--model_name_or_path", hub.GPT2, "--dataset_name", data / "texts.jsonl", "--use_peft", "true")
    heads = []
    for steps in (1, 3):
        out = tmp_path / str(steps)
        run("reward", *given, *SMALL_REWARD[2:], "--max_steps", steps, "--output_dir", out)
        heads.append(models.load_reward_model(str(out))[0].score.weight)
    assert not torch.equal(*heads)


@pytest.mark.process
def test_the_critic_gets_adapters_too(data, tmp_path):
    run("reward", "--model_name_or_path", hub.GPT2, "--dataset_name", data / "texts.jsonl", *SMALL_REWARD,
        "--output_dir", tmp_path / "reward")  # fmt: skip
    given = ("--model_name_or_path", hub.GPT2, "--dataset_name", data / "texts.jsonl", "--use_peft", "true")
    run("ppo", *given, *SMALL_PPO, "--value_head", "separate", "--advantage_estimator", "gae",
        "--reward_model_path", tmp_path / "reward", "--save_steps", 2, "--output_dir", tmp_path / "ppo")  # fmt: skip
    critic = load_file(tmp_path / "ppo" / "checkpoints" / "checkpoint-2" / "value.safetensors")
    reward = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward" / "model").state_dict()
    kept = "transformer.h.0.mlp.c_fc.{}weight"
    assert torch.equal(critic["base_model.model." + kept.format("base_layer.")], reward[kept.format("")])
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in critic.items())


@pytest.mark.process
def test_bfloat16_keeps_trained_weights_in_full_precision(data, tmp_path):
    given = ("--model_name_or_path", hub.GPT2, "--dataset_name", data / "texts.jsonl", "--dtype", "bfloat16")
    run("reward", *given, *SMALL_REWARD, "--learning_rate", 1e-6, "--output_dir", tmp_path / "reward")
    run("ppo", *given, *SMALL_PPO, "--learning_rate", 1e-6, "--reward_model_path", tmp_path / "reward",
        "--output_dir", tmp_path / "ppo")  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(hub.GPT2).state_dict()
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "ppo" / "model").state_dict()
    change = (made["transformer.h.0.mlp.c_fc.weight"] - base["transformer.h.0.mlp.c_fc.weight"]).abs()
    assert 0 < change.max() < 1e-4  # a step that bfloat16 weights of this size would have rounded away
    assert made["transformer.h.0.mlp.c_fc.weight"].dtype == torch.float32


# What is refused ---------------------------------------------------------------------------------------------------


def test_a_name_that_was_never_fetched_is_answered_with_what_to_do(capsys):
    said = sentence(capsys, "reward", "--model_name_or_path", "openai-community/gpt3")
    assert "openai-community/gpt3" in said and "HF_HUB_OFFLINE is set" in said and "go online" in said


def test_a_language_model_is_no_reward_model(capsys):
    assert "not a reward model" in sentence(capsys, "ppo", "--reward_model_path", hub.GPT2)


def test_reward_training_does_not_start_from_an_encoder(capsys, data):
    given = ("--model_name_or_path", hub.SENTIMENT, "--dataset_name", data / "texts.jsonl")
    assert "is an encoder" in sentence(capsys, "reward", *given)


def test_layers_that_do_not_exist_get_no_adapters(capsys, data):
    given = ("--model_name_or_path", hub.GPT2, "--dataset_name", data / "texts.jsonl", "--use_peft", "true")
    said = sentence(capsys, "reward", *given, "--lora_target_modules", "q_proj")
    assert "this model has no q_proj" in said and "c_attn" in said


def test_without_peft_one_sentence_says_how_to_get_it(monkeypatch, capsys, data):
    monkeypatch.setitem(sys.modules, "peft", None)  # what an absent package looks like to import
    given = ("--model_name_or_path", hub.GPT2, "--dataset_name", data / "texts.jsonl", "--use_peft", "true")
    assert "pip install peft" in sentence(capsys, "reward", *given)


def saved(tmp_path, **config):
    """The sentiment classifier as a folder whose config.json says something else."""
    folder = tmp_path / "model"
    hub.save(hub.SENTIMENT, folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return folder


def test_code_from_a_model_folder_is_never_run(tmp_path):
    folder = saved(tmp_path, auto_map={"AutoModelForCausalLM": "evil.Evil"})
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    for load in (models.load_policy, models.load_reward_model, models.load_tokenizer):
        with pytest.raises(BadInput, match="needs code of its own"):
            load(str(folder))


def test_pickled_weights_are_refused(tmp_path):
    folder = saved(tmp_path)
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(BadInput, match="safetensors"):
        models.load_reward_model(str(folder))


def test_a_trained_head_is_never_replaced_by_a_new_one(tmp_path):
    folder = saved(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="incomplete .*classifier.weight"):
        models.load_reward_model(str(folder))


def test_more_than_two_labels_are_no_score(tmp_path):
    folder = tmp_path / "three"
    AutoTokenizer.from_pretrained(hub.SENTIMENT).save_pretrained(folder)
    AutoModelForSequenceClassification.from_pretrained(
        hub.SENTIMENT, num_labels=3, ignore_mismatched_sizes=True
    ).save_pretrained(folder)
    with pytest.raises(BadInput, match="has 3 labels"):
        models.load_reward_model(str(folder))


def test_damaged_weights_are_answered_with_one_sentence(tmp_path):
    folder = saved(tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00\x00")
    with pytest.raises(BadInput, match="No model could be loaded"):
        models.load_reward_model(str(folder))


@pytest.mark.process
def test_a_hub_that_does_not_answer_is_asked_once(cache):
    """The client would ask again and again for each file; a cached model is loaded, another is refused at once."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                asked.append(connection.recv(200).split(b"\r\n")[0])
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        code = (
            "from rlhf.config import BadInput\nfrom rlhf.models import load_policy\n"
            f"load_policy({hub.GPT2!r})\n"
            "try: load_policy('nobody/nothing')\n"
            "except BadInput as error: print(error)"
        )
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(cache),
            "HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}",
        }  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "the Hub does not answer" in done.stdout, done.stderr[-2000:]
    of_models = [line.split()[:2] for line in asked if b"/resolve/" in line]
    names = (hub.GPT2, "nobody/nothing")
    assert of_models == [[b"HEAD", f"/{name}/resolve/main/config.json".encode()] for name in names]


# Recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_every_recipe_is_a_demo_whose_parts_can_be_built(name):
    demo = build(DemoArguments, read_recipe(name))
    assert demo.ppo_arguments(None, None).model_name_or_path == demo.model_name_or_path
    comments = [line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any("GB" in line for line in comments) and any("run" in line.lower() for line in comments)


@pytest.mark.process
@pytest.mark.parametrize(("name", "file"), [
    ("gpt2-ultrafeedback", "talks"), ("gpt2-sentiment", "reviews"), ("smollm2-135m-instruct", "talks"),
])  # fmt: skip
def test_a_recipe_runs_from_end_to_end(name, file, data, tmp_path, capsys):
    small = ("--max_length", 96, "--max_prompt_length", 60, "--reward_batch_size", 4, "--reward_max_steps", 2)
    small += ("--total_episodes", 16, "--per_device_train_batch_size", 8, "--allow_chance_reward", "true")
    run("demo", "--recipe", name, "--dataset_name", data / f"{file}.jsonl", *small, *SMALL_COMPARISON,
        "--output_dir", tmp_path / "demo")  # fmt: skip
    config, recipe = json.loads((tmp_path / "demo" / "config.json").read_text()), read_recipe(name)
    flags = {*small, *SMALL_COMPARISON, "--dataset_name"}
    kept = {key: value for key, value in recipe.items() if f"--{key}" not in flags}
    assert kept and {key: config[key] for key in kept} == kept
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    trains_no_reward_model = {"reward_model_path", "reward_funcs"} & recipe.keys()
    assert (summary["reward_model"] is None) == bool(trains_no_reward_model)
    assert (tmp_path / "demo" / "reward").exists() != bool(trains_no_reward_model)
    assert "ppo against base, paired" in capsys.readouterr().out


def test_an_unknown_recipe_is_answered_with_those_there_are(capsys):
    assert "gpt2-sentiment" in sentence(capsys, "demo", "--recipe", "gpt3")


def test_a_recipe_fills_the_form_and_gives_what_the_form_does_not_show():
    import gradio as gr

    from rlhf.ui.train import Form

    with gr.Blocks():
        form = Form("demo")
    recipe = read_recipe("gpt2-sentiment")
    values = dict(zip(form.knobs.values(), form.filled(recipe), strict=True))
    hidden = {key: value for key, value in recipe.items() if key not in form.knobs}
    assert {"reward_model_path", "prompt_words"} <= set(hidden)
    assert build(DemoArguments, hidden | form.entered(values)) == build(DemoArguments, recipe)


# GPT-2 at its full size --------------------------------------------------------------------------------------------

FULL_SIZE = """
import json, resource, sys
from transformers import GPT2Config, GPT2LMHeadModel
import hub
folder, out = sys.argv[1:]
_, tokenizer, _ = hub._gpt2()
GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
tokenizer.add_tokens([f"word{i}" for i in range(50257 - len(tokenizer))])
tokenizer.save_pretrained(folder)
with open(out + "/pairs.jsonl", "w") as file:
    for i in range(40):
        pair = {"prompt": f"{i} " + "The film was dull. " * 10, "chosen": " It was wonderful.", "rejected": " No."}
        file.write(json.dumps(pair) + "\\n")
from rlhf.__main__ import main
given = ["--model_name_or_path", folder, "--dataset_name", out + "/pairs.jsonl"]
assert main(["reward", *given, "--max_steps", "1", "--per_device_train_batch_size", "8",
             "--per_device_eval_batch_size", "8", "--max_length", "512", "--output_dir", out + "/reward"]) == 0
after_reward = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
assert main(["ppo", *given, "--max_steps", "1", "--per_device_train_batch_size", "16", "--response_length", "53",
             "--num_sample_generations", "0", "--allow_chance_reward", "true",
             "--reward_model_path", out + "/reward", "--output_dir", out + "/ppo"]) == 0
print("PEAK", after_reward, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.process
@pytest.mark.long
def test_gpt2_at_full_size_needs_less_than_six_gigabytes(tmp_path):
    (tmp_path / "gpt2").mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    words = [sys.executable, "-c", FULL_SIZE, tmp_path / "gpt2", tmp_path]
    done = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    after_reward, peak = map(float, done.stdout.split("PEAK")[1].split())
    print(f"peak {after_reward:.2f} GB after the reward step, {peak:.2f} GB after the PPO update")
    assert peak < 6
