"""The PPO trainer from outside: what an update may not depend on, the life cycle of a run, and what it accepts."""

import copy
import itertools
import json
import math

import pytest
import torch
from datasets import Dataset, IterableDataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    TrainerCallback,
    set_seed,
)
from worlds import EOS, small_model, tokenizer_of, trainer_for

import rlhf.ppo.logprobs
import rlhf.ppo.trainer
from rlhf.config import BadInput
from rlhf.models.generate import generate
from rlhf.ppo import Diverged, PPOConfig, PPOTrainer


PROMPTS = ("<bos>", "<bos> t3", "t5 t4 t3", "t7 t6", "<bos> t8 <eos> t9")
SIZE = 12
CHAT_TEMPLATE = "<bos> {% for message in messages %}{{ message['content'] }} {% endfor %}"
UNTIMED = ("time/", "tokens_per_second/", "eps")


@pytest.fixture(autouse=True)
def one_thread():
    """The models are too small for a second thread to be worth its start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def undecided(size=SIZE, seed=0):
    """A model that is sure of nothing, so that lengths differ and some responses end."""
    return small_model(size, seed=seed, scale=0.1, n_positions=16)


def classifier(size=SIZE, num_labels=1, seed=1):
    set_seed(seed)
    config = GPT2Config(
        vocab_size=size, n_positions=32, n_embd=32, n_layer=1, n_head=2, num_labels=num_labels, pad_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    return GPT2ForSequenceClassification(config).eval()


def fours(ids):
    """A score that differs between responses and is easily learnt."""
    return float(ids.count(4)) - 0.1 * len(ids)


def quick(folder, model=None, score=fours, **settings):
    """A trainer of 16 responses an update to prompts of different lengths."""
    settings = {"train_dataset": PROMPTS, **settings}
    return trainer_for(model or undecided(), score, folder, **settings)


def flat(module):
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def weights(trainer):
    """All that is trained."""
    return torch.cat([flat(trainer.model), flat(trainer.value_model)])


def updates_of(trainer):
    """The lines of metrics that updates wrote."""
    return [line for line in trainer.state.log_history if "objective/scores" in line]


def weights_after(trainer):
    trainer.train()
    return weights(trainer)


class Recorder(TrainerCallback):
    """Writes down which event was called at which update."""

    def __init__(self):
        self.events = []

    def names(self):
        return [name for name, _ in self.events]


for _event in (
    "on_train_begin", "on_step_begin", "on_step_end", "on_log", "on_save", "on_evaluate", "on_train_end",
):  # fmt: skip

    def _record(self, args, state, control, _event=_event, **kwargs):
        self.events.append((_event, state.global_step))

    setattr(Recorder, _event, _record)


class AfterStep(TrainerCallback):
    """Calls action(state, control) after each update."""

    def __init__(self, action):
        self.action = action

    def on_step_end(self, args, state, control, **kwargs):
        self.action(state, control)


class Listener:
    """A reward function that remembers what it was asked."""

    def __init__(self, score=fours):
        self.score, self.prompts, self.ids, self.texts, self.calls = score, [], [], [], 0

    def __call__(self, prompts, completions, completion_ids):
        self.calls += 1
        self.prompts += prompts
        self.ids += completion_ids
        self.texts += completions
        return [self.score(tuple(ids)) for ids in completion_ids]


# ---------------------------------------------------------------------------------------------------------------------
# One update, against the plainest code there is


class Naive:
    """PPO's update on given responses, a row at a time with Transformers' own forward pass, and no batching at all."""

    def __init__(self, model, rows, scores, *, lam=0.95, temperature=1.0):
        self.model, self.rows, self.temperature = model, rows, temperature
        self.head = torch.nn.Linear(model.config.n_embd, 1)
        for parameter in self.head.parameters():
            torch.nn.init.zeros_(parameter)
        with torch.no_grad():
            self.old = torch.cat([self.row(*row)[0] for row in rows])
        # The value head is zero and the policy its own reference: all that is left is the score, discounted.
        earned = [
            [score * lam**away for away in reversed(range(len(row[1])))]
            for row, score in zip(rows, scores, strict=True)
        ]
        self.returns = torch.tensor([number for row in earned for number in row])
        self.advantages = (self.returns - self.returns.mean()) / (self.returns.var() + 1e-8).sqrt()

    def row(self, prompt, response):
        """Log-probabilities, entropies and values of one response's tokens."""
        found = self.model(torch.tensor([prompt + response]), output_hidden_states=True)
        places = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        distribution = torch.log_softmax(found.logits[0, places] / self.temperature, dim=-1)
        logprobs = distribution.gather(1, torch.tensor(response).unsqueeze(1)).squeeze(1)
        entropies = -(distribution.exp() * distribution).sum(dim=-1)
        return logprobs, entropies, self.head(found.hidden_states[-1][0, places]).squeeze(1)

    def losses(self):
        logprobs, entropies, values = map(torch.cat, zip(*[self.row(*row) for row in self.rows], strict=True))
        off = logprobs - self.old
        plain, clipped = -self.advantages * off.exp(), -self.advantages * off.exp().clamp(0.8, 1.2)
        policy = torch.maximum(plain, clipped).mean()
        error = torch.maximum((values - self.returns) ** 2, (values.clamp(-0.2, 0.2) - self.returns) ** 2)
        seen = {
            "policy/approxkl_avg": 0.5 * (off**2).mean(),
            "policy/clipfrac_avg": (clipped > plain).float().mean(),
            "policy/entropy_avg": entropies.mean(),
            "val/ratio": off.exp().mean(),
            "loss/policy_avg": policy,
            "loss/value_avg": 0.5 * error.mean(),
        }
        return policy + 0.1 * 0.5 * error.mean(), {name: value.item() for name, value in seen.items()}

    def learn(self, epochs, learning_rate):
        """What was seen in each epoch."""
        trained = [*self.model.parameters(), *self.head.parameters()]
        optimizer = torch.optim.AdamW(trained, lr=learning_rate, eps=1e-5, weight_decay=0.0)
        history = []
        for _ in range(epochs):
            loss, seen = self.losses()
            history.append(seen)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        return history


def test_an_update_and_its_metrics_equal_a_plain_loop_over_rows_without_pads(tmp_path):
    asked = Listener()
    trainer = quick(
        tmp_path, reward_funcs=asked, num_ppo_epochs=3, total_episodes=16, temperature=0.7, learning_rate=1e-2,
        value_learning_rate=1e-2,
    )  # fmt: skip
    trainer.train()
    prompts = trainer.processing_class(asked.prompts)["input_ids"]
    rows = list(zip(prompts, asked.ids, strict=True))
    assert len({len(ids) for ids in asked.ids}) > 2  # otherwise a mean over rows would do
    naive = Naive(undecided(), rows, [fours(ids) for ids in asked.ids], temperature=0.7)
    history = naive.learn(3, 1e-2)
    line = updates_of(trainer)[0]
    for name in history[0]:
        expected = sum(seen[name] for seen in history) / 3
        assert line[name] == pytest.approx(expected, abs=2e-6), name
    assert line["policy/approxkl_avg"] > 1e-4
    expected = torch.cat([flat(naive.model), flat(naive.head)])
    assert torch.allclose(weights(trainer), expected, atol=2e-5)
    assert line["objective/entropy"] == pytest.approx(-naive.old.sum().item() / 16, abs=1e-4)


def test_the_first_pass_has_ratio_one_and_moves_nothing_off(tmp_path):
    trainer = quick(tmp_path, num_ppo_epochs=1)
    trainer.train()
    for line in updates_of(trainer):
        assert line["val/ratio"] == pytest.approx(1.0, abs=1e-5)
        assert line["policy/approxkl_avg"] < 1e-9
        assert line["policy/clipfrac_avg"] == 0
        assert line["policy/entropy_avg"] > 0 and line["objective/entropy"] > 0
    assert updates_of(trainer)[0]["objective/kl"] == pytest.approx(0, abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# What an update may not depend on


@pytest.fixture(scope="module")
def expected_weights(tmp_path_factory):
    """Weights after two updates, cut in no way."""
    return weights_after(quick(tmp_path_factory.mktemp("whole"), total_episodes=32, num_mini_batches=2))


@pytest.mark.parametrize("tokens", [1, 20, 60])
def test_weights_do_not_depend_on_the_tokens_of_a_micro_batch(tokens, expected_weights, tmp_path, monkeypatch):
    monkeypatch.setitem(rlhf.ppo.logprobs.MICRO_BATCH_TOKENS, "cpu", tokens)
    found = weights_after(quick(tmp_path, total_episodes=32, num_mini_batches=2))
    assert torch.allclose(found, expected_weights, atol=2e-6)


@pytest.mark.parametrize("per_device", [1, 2, 8])
def test_weights_do_not_depend_on_the_split_into_accumulation_steps(per_device, expected_weights, tmp_path):
    trainer = quick(
        tmp_path, per_device_train_batch_size=per_device, gradient_accumulation_steps=16 // per_device,
        total_episodes=32, num_mini_batches=2,
    )  # fmt: skip
    assert torch.allclose(weights_after(trainer), expected_weights, atol=2e-6)


@pytest.mark.parametrize("entries", [1, 5 * SIZE])
def test_weights_do_not_depend_on_how_the_vocabulary_projection_is_cut(
    entries, expected_weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(rlhf.ppo.logprobs, "LOGITS_AT_ONCE", entries)
    found = weights_after(quick(tmp_path, total_episodes=32, num_mini_batches=2))
    assert torch.allclose(found, expected_weights, atol=2e-6)


@pytest.mark.parametrize("value_head", ["shared", "separate"])
def test_recomputing_activations_gives_the_same_weights(value_head, tmp_path):
    plain, recomputed = (
        weights_after(
            quick(tmp_path / str(wanted), gradient_checkpointing=wanted, total_episodes=32, value_head=value_head)
        )
        for wanted in (False, True)
    )
    assert torch.allclose(plain, recomputed, atol=1e-6)


def test_dropout_of_the_model_is_off_in_both_phases(tmp_path):
    model = undecided()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    trainer = quick(tmp_path, model.train(), num_ppo_epochs=1, gradient_checkpointing=True)
    trainer.train()
    assert all(line["val/ratio"] == pytest.approx(1.0, abs=1e-5) for line in updates_of(trainer))


def rearranged(monkeypatch, change):
    """Let `change` have the responses between sampling and learning."""

    def sampled(*args, **kwargs):
        return change(generate(*args, **kwargs))

    monkeypatch.setattr(rlhf.ppo.trainer, "generate", sampled)


def test_the_order_of_the_rows_does_not_matter(tmp_path, monkeypatch):
    # All rows answer one prompt, so that the responses can change places.
    settings = {"train_dataset": ("<bos>",), "total_episodes": 16}
    one = weights_after(quick(tmp_path / "one", **settings))

    def backwards(generation):
        for name in ("responses", "mask", "logprobs", "ended", "hidden"):
            setattr(generation, name, getattr(generation, name).flip(0))
        return generation

    rearranged(monkeypatch, backwards)
    other = weights_after(quick(tmp_path / "other", **settings))
    assert torch.allclose(one, other, atol=2e-6)


def test_columns_of_pads_change_neither_weights_nor_metrics(tmp_path, monkeypatch):
    plain = quick(tmp_path / "plain")
    plain.train()

    def padded(generation):
        for name, garbage in (("responses", 9), ("mask", False), ("logprobs", -50.0), ("hidden", 1e3)):
            tensor = getattr(generation, name)
            pads = torch.full_like(tensor[:, :1], garbage).repeat(1, 3, *[1] * (tensor.ndim - 2))
            setattr(generation, name, torch.cat([tensor, pads], dim=1))
        return generation

    rearranged(monkeypatch, padded)
    other = quick(tmp_path / "padded")
    other.train()
    assert torch.allclose(weights(plain), weights(other), atol=1e-6)
    for one, two in zip(updates_of(plain), updates_of(other), strict=True):
        assert two["objective/entropy"] >= 0 and two["policy/entropy_avg"] >= 0
        for name in one:
            if not name.startswith(UNTIMED):
                assert two[name] == pytest.approx(one[name], abs=1e-4), name


def test_a_pad_token_that_is_the_end_token_changes_nothing(tmp_path):
    shared = tokenizer_of(SIZE)
    shared.pad_token = shared.eos_token
    assert shared.pad_token_id == EOS
    apart = quick(tmp_path / "apart")
    together = quick(tmp_path / "together", processing_class=shared)
    before = apart.model.lm_head.weight[EOS].detach().clone()
    assert torch.equal(weights_after(apart), weights_after(together))
    assert sum(line["val/num_eos_tokens"] for line in updates_of(together)) > 0
    assert not torch.equal(together.model.lm_head.weight[EOS], before)


def test_the_end_token_is_an_action_that_is_learnt(tmp_path):
    """Nothing but the end token is ever worth anything, and it is the pad token too."""
    tokenizer = tokenizer_of(SIZE)
    tokenizer.pad_token = tokenizer.eos_token
    trainer = quick(
        tmp_path, score=lambda ids: float(ids[-1] == EOS), processing_class=tokenizer, total_episodes=16 * 15,
        learning_rate=1e-2,
    )  # fmt: skip
    trainer.train()
    first, *_, last = updates_of(trainer)
    assert first["val/num_eos_tokens"] <= 10
    assert last["val/num_eos_tokens"] >= 15
    assert last["completions/mean_length"] < first["completions/mean_length"]


def test_mixed_precision_runs_on_the_cpu(tmp_path):
    trainer = quick(tmp_path, bf16=True, num_ppo_epochs=2)
    trainer.train()
    for line in updates_of(trainer):
        assert all(math.isfinite(value) for value in line.values())
        assert line["val/ratio"] == pytest.approx(1.0, abs=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# Life cycle


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_update_makes_all_its_optimizer_steps_also_at_the_end_of_the_prompts(accumulation, tmp_path):
    counts = [0]
    trainer = quick(
        tmp_path, train_dataset=PROMPTS * 5, per_device_train_batch_size=16 // accumulation, total_episodes=64,
        gradient_accumulation_steps=accumulation, num_ppo_epochs=3, num_mini_batches=4,
        callbacks=[AfterStep(lambda state, control: counts.append(0))],
    )  # fmt: skip

    def count(*_):
        counts[-1] += 1

    trainer.optimizer.register_step_post_hook(count)
    trainer.train()
    assert counts == [12, 12, 12, 12, 0]
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {48}
    assert trainer.state.global_step == 4 and trainer.state.epoch == pytest.approx(64 / 25)


def test_each_pass_over_the_prompts_takes_every_prompt_once(tmp_path):
    texts = [f"t{3 + i % 9} t{3 + i // 9}" for i in range(24)]
    asked = Listener()
    trainer = quick(tmp_path, reward_funcs=asked, train_dataset=texts, total_episodes=48)
    trainer.train()
    assert len(set(texts)) == 24
    assert sorted(asked.prompts[:24]) == sorted(asked.prompts[24:]) == sorted(texts)
    assert asked.prompts[:24] != texts  # in another order than they were given


def test_episodes_follow_from_the_passes_over_the_prompts(tmp_path):
    trainer = quick(tmp_path, train_dataset=PROMPTS * 10, total_episodes=None, num_train_epochs=2)
    trainer.train()
    assert trainer.state.global_step == math.ceil(100 / 16)


LONG_MEMORY = {
    "kl_controller": "adaptive", "kl_target": 0.05, "kl_horizon": 100, "reward_normalization": "running",
    "num_mini_batches": 2, "save_strategy": "steps", "save_steps": 2, "kl_coef": 0.2,
}  # fmt: skip


def assert_same_run(one, other):
    assert torch.equal(weights(one), weights(other))
    assert len(updates_of(one)) == len(updates_of(other)) == 4
    for line, again in zip(updates_of(one), updates_of(other), strict=True):
        for name in line:
            assert name.startswith(UNTIMED) or line[name] == again[name], name


@pytest.mark.parametrize("value_head", ["shared", "separate"])
def test_two_updates_and_two_resumed_ones_equal_four_to_the_bit(value_head, tmp_path):
    settings = {**LONG_MEMORY, "value_head": value_head}
    straight = quick(tmp_path / "straight", **settings)
    straight.train()
    resumed = quick(tmp_path / "resumed", **settings)
    result = resumed.train(resume_from_checkpoint=tmp_path / "straight" / "checkpoint-2")
    assert result.global_step == 4
    assert_same_run(straight, resumed)
    assert resumed.kl_coef == straight.kl_coef != 0.2
    assert resumed.score_stats == straight.score_stats


def test_a_stopped_run_goes_on_from_its_last_checkpoint(tmp_path):
    straight = quick(tmp_path / "straight", **LONG_MEMORY)
    straight.train()

    def stop(state, control):
        control.should_training_stop = state.global_step == 2

    stopped = quick(tmp_path / "run", callbacks=[AfterStep(stop)], **LONG_MEMORY)
    assert stopped.train().global_step == 2
    assert stopped.state.global_step == 2 and len(updates_of(stopped)) == 2
    resumed = quick(tmp_path / "run", **LONG_MEMORY)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(straight, resumed)


def test_a_stopped_trainer_goes_on_itself(tmp_path):
    straight = quick(tmp_path / "straight", **LONG_MEMORY)
    straight.train()
    run = quick(tmp_path / "run", **LONG_MEMORY)
    run.train()
    run.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert_same_run(straight, run)


def test_a_run_that_is_complete_has_nothing_left_to_do(tmp_path):
    trainer = quick(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    before = weights(trainer)
    assert trainer.train(resume_from_checkpoint=True).global_step == 4
    assert torch.equal(weights(trainer), before)


def test_a_resumed_stream_skips_what_was_used(tmp_path):
    class Stream:
        def __iter__(self):
            for number in range(1000):
                yield {"prompt": f"t{3 + number % 9} t{3 + number // 9 % 9}"}

    def run(folder, resume=None):
        args = PPOConfig(
            output_dir=str(folder), learning_rate=3e-3, per_device_train_batch_size=8, max_steps=4, use_cpu=True,
            response_length=3, save_strategy="steps", save_steps=2, report_to="none", disable_tqdm=True,
        )  # fmt: skip
        asked = Listener()
        trainer = PPOTrainer(undecided(), args, tokenizer_of(SIZE), asked, train_dataset=Stream())
        trainer.train(resume_from_checkpoint=resume)
        return trainer, asked.prompts

    straight, asked = run(tmp_path / "straight")
    resumed, rest = run(tmp_path / "resumed", tmp_path / "straight" / "checkpoint-2")
    assert asked == [row["prompt"] for row in itertools.islice(Stream(), 32)]
    assert rest == asked[16:]
    assert torch.equal(weights(straight), weights(resumed))
    straight.train(resume_from_checkpoint=tmp_path / "straight" / "checkpoint-2")  # the stream begins again
    assert torch.equal(weights(straight), weights(resumed))


def test_a_checkpoint_is_a_model_that_transformers_alone_can_load(tmp_path):
    trainer = quick(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    folder = tmp_path / "checkpoint-4"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(flat(loaded), flat(trainer.model))
    assert loaded.config._attn_implementation != "packed" and "packed" not in (folder / "config.json").read_text()
    assert len(AutoTokenizer.from_pretrained(folder)) == SIZE
    assert loaded.generate(torch.tensor([[1, 3]]), max_new_tokens=3, do_sample=False).shape[1] <= 5


def test_only_so_many_checkpoints_are_kept(tmp_path):
    quick(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=2).train()
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_checkpoints_that_cannot_be_gone_on_from_are_refused(tmp_path):
    quick(tmp_path, save_strategy="steps", save_steps=2).train()
    folder = tmp_path / "checkpoint-2"
    with pytest.raises(BadInput, match="not a checkpoint"):
        quick(tmp_path).train(resume_from_checkpoint=tmp_path)
    with pytest.raises(BadInput, match="another model"):
        quick(tmp_path, undecided(SIZE + 1)).train(resume_from_checkpoint=folder)
    with pytest.raises(BadInput, match="another model|other parts"):
        quick(tmp_path, value_head="separate").train(resume_from_checkpoint=folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match="damaged"):
        quick(tmp_path).train(resume_from_checkpoint=str(folder))
    path.unlink()
    with pytest.raises(BadInput, match="damaged"):
        quick(tmp_path).train(resume_from_checkpoint=folder)


def test_resuming_where_nothing_was_saved_is_refused(tmp_path):
    """Starting anew instead would cost the run that somebody thought they had."""
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(BadInput, match="checkpoint"):
            quick(folder).train(resume_from_checkpoint=True)


def test_a_callback_may_stop_the_run(tmp_path):
    def stop(state, control):
        control.should_training_stop = True

    recorder = Recorder()
    trainer = quick(tmp_path, callbacks=[AfterStep(stop), recorder])
    assert trainer.train().global_step == 1
    assert recorder.names() == ["on_train_begin", "on_step_begin", "on_step_end", "on_log", "on_train_end"]


def test_callbacks_hear_of_every_event(tmp_path):
    recorder = Recorder()
    trainer = quick(
        tmp_path, callbacks=[recorder], total_episodes=32, save_strategy="steps", save_steps=1, eval_strategy="steps",
        eval_steps=2, eval_dataset=["<bos> t4"],
    )  # fmt: skip
    trainer.train()
    assert recorder.events == [
        ("on_train_begin", 0),
        ("on_step_begin", 0), ("on_step_end", 1), ("on_log", 1), ("on_save", 1),
        ("on_step_begin", 1), ("on_step_end", 2), ("on_log", 2), ("on_log", 2), ("on_evaluate", 2), ("on_save", 2),
        ("on_train_end", 2),
    ]  # fmt: skip


def test_metrics_are_written_as_often_as_asked_for(tmp_path):
    trainer = quick(tmp_path, total_episodes=16 * 5, logging_steps=2)
    trainer.train()
    assert [line["step"] for line in updates_of(trainer)] == [2, 4]
    assert updates_of(trainer)[-1]["episode"] == 64


def test_metrics_reach_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "curves"))
    quick(tmp_path, report_to="tensorboard", total_episodes=32).train()
    files = list((tmp_path / "curves").rglob("events.out.tfevents.*"))
    assert files and any(b"objective/kl" in file.read_bytes() for file in files)


def test_passes_over_the_prompts_may_set_the_rhythm(tmp_path):
    recorder = Recorder()
    trainer = quick(
        tmp_path, train_dataset=PROMPTS[:4] * 8, callbacks=[recorder], save_strategy="epoch", eval_strategy="epoch",
        logging_strategy="epoch", eval_dataset=["<bos>"],
    )  # fmt: skip
    trainer.train()
    assert [event for event in recorder.events if event[0] in ("on_evaluate", "on_save")] == [
        ("on_evaluate", 2), ("on_save", 2), ("on_evaluate", 4), ("on_save", 4),
    ]  # fmt: skip
    assert [line["step"] for line in updates_of(trainer)] == [2, 4]


def test_without_a_price_there_is_no_reference(tmp_path):
    trainer = quick(tmp_path, kl_coef=0.0, eval_dataset=["<bos>"])
    trainer.train()
    assert trainer.ref_model is None
    for line in updates_of(trainer):
        assert "objective/kl" not in line and "objective/kl_exact" not in line
        assert line["objective/non_score_reward"] == 0
        assert line["objective/rlhf_reward"] == line["objective/scores"]
    metrics = trainer.evaluate()
    assert "eval/score" in metrics and "eval/gain" not in metrics


def test_the_adaptive_controller_follows_its_formula(tmp_path):
    trainer = quick(tmp_path, kl_controller="adaptive", kl_target=0.5, kl_horizon=64, kl_coef=0.1)
    trainer.train()
    lines = updates_of(trainer)
    expected = 0.1
    for line in lines:
        assert line["objective/kl_coef"] == pytest.approx(expected, rel=1e-9)
        expected *= 1 + max(-0.2, min(0.2, line["objective/kl"] / 0.5 - 1)) * 16 / 64
    assert trainer.kl_coef == pytest.approx(expected, rel=1e-9)
    assert lines[1]["objective/kl_coef"] == pytest.approx(0.1 * 0.95)  # the KL begins at 0, so the price falls


def test_early_stopping_ends_the_epochs(tmp_path):
    far = quick(tmp_path, num_ppo_epochs=4, early_stopping=True, target_kl=1e-5)
    far.train()
    assert all(1 <= line["policy/epochs_run"] < 4 for line in updates_of(far))
    near = quick(tmp_path, num_ppo_epochs=4, early_stopping=True, target_kl=1e3)
    near.train()
    assert all(line["policy/epochs_run"] == 4 for line in updates_of(near))
    off = quick(tmp_path, num_ppo_epochs=4, target_kl=1e-5)
    off.train()
    assert all(line["policy/epochs_run"] == 4 for line in updates_of(off))


def test_gradients_are_clipped_and_their_norm_is_logged(tmp_path):
    trainer = quick(tmp_path, max_grad_norm=0.01, num_ppo_epochs=2)
    norms = []

    def look(optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

    trainer.optimizer.register_step_pre_hook(look)
    trainer.train()
    assert len(norms) == 8 and max(norms) <= 0.01 * (1 + 1e-4)
    assert all(line["grad_norm"] > 0.01 for line in updates_of(trainer))


@pytest.mark.parametrize(("value_head", "times"), [("shared", 10), ("separate", 1)])
def test_a_value_head_which_starts_at_zero_learns_ten_times_as_fast(value_head, times, tmp_path):
    trainer = quick(tmp_path, learning_rate=1e-3, value_head=value_head)
    groups = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert groups[id(trainer.value_model.score.weight)] == pytest.approx(1e-3 * times)


def test_the_rate_falls_to_zero_and_the_value_head_may_have_its_own(tmp_path):
    trainer = quick(tmp_path, learning_rate=4e-3, value_learning_rate=8e-3)
    groups = {id(p): group for group in trainer.optimizer.param_groups for p in group["params"]}
    assert groups[id(trainer.value_model.score.weight)]["lr"] == 8e-3
    assert groups[id(trainer.model.lm_head.weight)]["lr"] == 4e-3
    assert {group["eps"] for group in trainer.optimizer.param_groups} == {1e-5}
    trainer.train()
    assert [line["lr"] for line in updates_of(trainer)] == pytest.approx([4e-3, 3e-3, 2e-3, 1e-3])
    assert groups[id(trainer.value_model.score.weight)]["lr"] == 0


def test_the_value_head_learns_first_where_it_is_to_warm_up(tmp_path):
    seen = []
    trainer = quick(tmp_path, value_warmup_steps=2)
    trainer.add_callback(AfterStep(lambda *_: seen.append((flat(trainer.model), flat(trainer.value_model)))))
    start, head = flat(trainer.model), flat(trainer.value_model)
    trainer.train()
    assert torch.equal(seen[0][0], start) and torch.equal(seen[1][0], start)
    assert not torch.equal(seen[0][1], head) and not torch.equal(seen[1][1], seen[0][1])
    assert not torch.equal(seen[2][0], start)
    assert all(line["policy/approxkl_avg"] < 1e-9 for line in updates_of(trainer)[:2])


def test_a_separate_value_model_starts_with_the_policys_trunk_and_is_saved(tmp_path):
    trainer = quick(tmp_path / "run", value_head="separate")
    policy, values = flat(trainer.model.transformer), flat(trainer.value_model.transformer)
    assert torch.equal(policy, values)
    trainer.train()
    assert not torch.equal(flat(trainer.value_model.transformer), values)
    assert updates_of(trainer)[-1]["loss/value_avg"] > 0
    trainer.save_model(tmp_path / "saved")
    assert torch.equal(flat(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), flat(trainer.model))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "value_model")
    assert torch.equal(flat(loaded), flat(trainer.value_model))


def test_a_separate_value_model_starts_from_the_reward_model_where_there_is_one(tmp_path):
    reward = classifier()
    trainer = quick(tmp_path, reward_model=reward, value_head="separate")
    assert torch.equal(flat(trainer.value_model), flat(reward))
    before = flat(reward)
    trainer.train()
    assert torch.equal(flat(reward), before)  # the judge stays as it is
    assert not torch.equal(flat(trainer.value_model), before)


def test_a_value_model_that_is_given_is_trained_and_saved(tmp_path):
    critic = classifier(seed=5)
    before = flat(critic)
    trainer = quick(tmp_path / "run", value_model=critic)
    assert trainer.value_model is critic
    trainer.train()
    assert not torch.equal(flat(critic), before)
    trainer.save_model(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "value_model")
    assert torch.equal(flat(loaded), flat(critic))
    by_path = quick(tmp_path / "again", value_model=str(tmp_path / "saved" / "value_model"))
    assert torch.equal(flat(by_path.value_model), flat(critic))


def test_the_value_head_is_saved_beside_the_policy_unless_it_is_not_wanted(tmp_path):
    trainer = quick(tmp_path / "run")
    trainer.train()
    trainer.save_model(tmp_path / "with")
    assert (tmp_path / "with" / "value_model" / "model.safetensors").is_file()
    assert torch.equal(flat(AutoModelForCausalLM.from_pretrained(tmp_path / "with")), flat(trainer.model))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "with")) == SIZE
    trainer.args.save_value_model = False
    trainer.save_model(tmp_path / "without")
    assert not (tmp_path / "without" / "value_model").exists()


def test_a_gradient_that_is_not_finite_ends_the_run_and_spoils_nothing(tmp_path):
    trainer = quick(tmp_path)
    before = weights(trainer)
    trainer.model.transformer.wte.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(Diverged, match="update 1"):
        trainer.train()
    assert torch.equal(weights(trainer), before)


# ---------------------------------------------------------------------------------------------------------------------
# Adapters


def lora(**settings):
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM", **settings
    )


def test_with_adapters_the_base_is_the_reference_and_only_adapters_learn(tmp_path):
    model = undecided()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = quick(tmp_path, model, peft_config=lora(lora_dropout=0.3), learning_rate=3e-2)
    assert trainer.ref_model is None
    trainer.train()
    lines = updates_of(trainer)
    assert lines[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert lines[0]["objective/kl_exact"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["objective/kl_exact"] > 1e-4
    learnt = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert learnt and all("lora_" in name for name in learnt)
    for name, parameter in trainer.model.get_base_model().named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")]), name
    assert trainer.evaluate(["<bos>", "t4"])["eval/kl"] > 0


def test_adapters_are_resumed_to_the_bit_and_saved_as_adapters(tmp_path):
    def run(folder, resume=None):
        set_seed(3)
        trainer = quick(folder, peft_config=lora(), **LONG_MEMORY)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    straight = run(tmp_path / "straight")
    resumed = run(tmp_path / "resumed", tmp_path / "straight" / "checkpoint-2")
    assert_same_run(straight, resumed)
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(undecided(), tmp_path / "straight" / "checkpoint-4")
    assert torch.equal(flat(loaded), flat(straight.model))
    with pytest.raises(BadInput, match="another model|other parts"):
        quick(tmp_path).train(resume_from_checkpoint=tmp_path / "straight" / "checkpoint-2")


def test_adapters_go_with_recomputed_activations(tmp_path):
    found = []
    for wanted in (False, True):
        set_seed(3)
        trainer = quick(tmp_path, peft_config=lora(lora_dropout=0.3), gradient_checkpointing=wanted)
        found.append(weights_after(trainer))
    assert torch.allclose(*found, atol=1e-6)


def test_adapters_go_with_a_separate_value_model(tmp_path):
    trainer = quick(tmp_path, peft_config=lora(), value_head="separate")
    before = flat(trainer.value_model)
    trainer.train()
    assert not torch.equal(flat(trainer.value_model), before)


def test_another_adapter_may_be_the_reference(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(undecided(), lora())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.add_adapter("before", lora())
    state = {name: value.clone() for name, value in peft.get_peft_model_state_dict(model).items()}
    peft.set_peft_model_state_dict(model, state, adapter_name="before")
    fixed = {name: p.detach().clone() for name, p in model.named_parameters() if "before" in name}
    trainer = quick(tmp_path, model, ref_adapter_name="before", model_adapter_name="default", learning_rate=3e-2)
    trainer.train()
    lines = updates_of(trainer)
    assert lines[0]["objective/kl_exact"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["objective/kl_exact"] > 1e-4
    assert all(torch.equal(p, fixed[name]) for name, p in model.named_parameters() if name in fixed)


# ---------------------------------------------------------------------------------------------------------------------
# Responses and scores


def test_responses_that_were_cut_off_teach_nothing_where_they_are_masked(tmp_path):
    """Whatever they score, the weights come out the same."""
    found = []
    for worth in (0.0, 50.0):

        def score(ids, worth=worth):
            return fours(ids) if ids[-1] == EOS else worth

        trainer = quick(tmp_path, mask_truncated_completions=True, score=score, total_episodes=16)
        found.append(weights_after(trainer))
        assert 0 < updates_of(trainer)[0]["val/num_eos_tokens"] < 16
    assert torch.equal(*found)
    assert not torch.equal(found[0], weights(quick(tmp_path)))


def test_an_update_of_nothing_but_cut_off_responses_leaves_the_weights_alone(tmp_path, monkeypatch):
    def cut_off(generation):
        generation.ended[:] = False
        return generation

    rearranged(monkeypatch, cut_off)
    trainer = quick(tmp_path, mask_truncated_completions=True)
    before = weights(trainer)
    assert torch.equal(weights_after(trainer), before)
    assert all(math.isfinite(value) for line in updates_of(trainer) for value in line.values())


def test_the_penalty_for_not_ending_goes_by_how_a_response_finished(tmp_path):
    """With another stop token, the tokenizer's end token within a response is a token like any other."""
    asked = Listener()
    trainer = quick(
        tmp_path, reward_funcs=asked, missing_eos_penalty=3.0, stop_token_id=4, total_episodes=16, response_length=8
    )
    trainer.train()
    cut = [ids for ids in asked.ids if ids[-1] != 4]
    assert 0 < len(cut) < 16
    assert any(EOS in ids[:-1] for ids in asked.ids)  # it ended nothing
    assert all(4 not in ids[:-1] for ids in asked.ids)
    line = updates_of(trainer)[0]
    raw = sum(map(fours, asked.ids)) / 16
    assert line["objective/eos_penalty"] == pytest.approx(3.0 * len(cut) / 16)
    assert line["objective/scores_raw"] == pytest.approx(raw, abs=1e-5)
    assert line["objective/scores"] == pytest.approx(raw - 3.0 * len(cut) / 16, abs=1e-5)
    assert line["val/num_eos_tokens"] == 16 - len(cut)
    assert line["completions/clipped_ratio"] == pytest.approx(len(cut) / 16)


def test_a_response_that_ends_with_its_last_token_is_not_charged(tmp_path):
    asked = Listener()
    trainer = quick(tmp_path, reward_funcs=asked, missing_eos_penalty=1.0, response_length=1, total_episodes=64)
    trainer.train()
    ended = [sum(ids == [EOS] for ids in asked.ids[16 * i : 16 * i + 16]) for i in range(4)]
    assert sum(ended) > 0
    for count, line in zip(ended, updates_of(trainer), strict=True):
        assert line["val/num_eos_tokens"] == count
        assert line["objective/eos_penalty"] == pytest.approx(1 - count / 16)


@pytest.mark.parametrize("word", ["none", None])
def test_without_a_stop_token_all_responses_have_full_length(word, tmp_path):
    asked = Listener()
    trainer = quick(tmp_path, reward_funcs=asked, stop_token=word)
    trainer.train()
    assert {len(ids) for ids in asked.ids} == {5}
    assert any(EOS in ids for ids in asked.ids)
    assert all(line["completions/min_length"] == 5 for line in updates_of(trainer))


def test_by_default_the_end_token_ends_a_response(tmp_path):
    asked = Listener()
    quick(tmp_path, reward_funcs=asked).train()
    assert any(ids[-1] == EOS for ids in asked.ids)
    assert not any(EOS in ids[:-1] for ids in asked.ids)


def test_each_prompt_is_answered_as_often_as_asked_for(tmp_path):
    asked = Listener()
    trainer = quick(tmp_path, reward_funcs=asked, train_dataset=PROMPTS[:4], num_generations=4, total_episodes=32)
    trainer.train()
    for update in (asked.prompts[:16], asked.prompts[16:]):
        assert {prompt: update.count(prompt) for prompt in PROMPTS[:4]} == dict.fromkeys(PROMPTS[:4], 4)
    assert len({tuple(ids) for ids in asked.ids[:16]}) > 8
    assert trainer.state.epoch == 2


def test_scores_are_clipped_after_they_are_measured(tmp_path):
    trainer = quick(tmp_path, score=lambda ids: 10.0 if ids[0] < 6 else 0.5, reward_clip_range=2.0, total_episodes=16)
    trainer.train()
    line = updates_of(trainer)[0]
    share = (line["objective/scores_raw"] - 0.5) / 9.5
    assert 0 < share < 1
    assert line["objective/scores_clipped"] == pytest.approx(share, abs=1e-5)
    assert line["objective/scores"] == pytest.approx(2.0 * share + 0.5 * (1 - share), abs=1e-5)


def test_scores_may_be_measured_in_the_references_standard_deviations(tmp_path):
    asked = Listener(lambda ids: 100.0 + 20.0 * fours(ids))
    trainer = quick(tmp_path, reward_funcs=asked, reward_normalization="reference")
    trainer.train()
    raw = torch.tensor([asked.score(tuple(ids)) for ids in asked.ids]).view(4, 16)
    mean, spread = raw[0].mean().item(), raw[0].std().item()
    for update, line in zip(raw, updates_of(trainer), strict=True):
        assert line["objective/scores"] == pytest.approx((update.mean().item() - mean) / spread, abs=1e-4)
        assert line["objective/scores_raw"] == pytest.approx(update.mean().item(), abs=1e-3)


def test_scores_may_be_measured_in_standard_deviations_of_all_so_far(tmp_path):
    asked = Listener(lambda ids: 100.0 + 20.0 * fours(ids))
    trainer = quick(tmp_path, reward_funcs=asked, reward_normalization="running")
    trainer.train()
    raw = torch.tensor([asked.score(tuple(ids)) for ids in asked.ids]).view(4, 16)
    for number, line in enumerate(updates_of(trainer)):
        seen = raw[: number + 1]
        expected = (raw[number].mean() - seen.mean()) / seen.std()
        assert line["objective/scores"] == pytest.approx(expected.item(), abs=1e-4)


def test_scores_that_never_differ_are_no_reason_to_divide_by_zero(tmp_path):
    for kind in ("reference", "running"):
        trainer = quick(tmp_path, score=lambda ids: 1.0, reward_normalization=kind)
        trainer.train()
        assert all(math.isfinite(value) for line in updates_of(trainer) for value in line.values())
        assert torch.isfinite(weights(trainer)).all()


def test_an_entropy_bonus_keeps_the_choices_open(tmp_path):
    settings = {"score": lambda ids: 0.0, "kl_coef": 0.0, "learning_rate": 1e-2, "response_length": 2}
    with_bonus, without = (
        quick(tmp_path, small_model(SIZE, n_positions=16), entropy_coef=coefficient, total_episodes=160, **settings)
        for coefficient in (0.5, 0.0)
    )
    with_bonus.train()
    without.train()
    assert updates_of(with_bonus)[-1]["policy/entropy_avg"] > updates_of(without)[-1]["policy/entropy_avg"] + 0.3


def test_a_reference_that_is_given_stays_as_it_is_and_sets_the_kl(tmp_path):
    reference = undecided(seed=7)
    before = flat(reference)
    trainer = quick(tmp_path, ref_model=reference)
    trainer.train()
    assert updates_of(trainer)[0]["objective/kl_exact"] > 0.01
    assert torch.equal(flat(reference), before)


def test_prompts_may_be_answered_a_few_at_a_time(tmp_path):
    trainer = quick(tmp_path, local_rollout_forward_batch_size=5, num_ppo_epochs=1)
    trainer.train()
    assert all(line["val/ratio"] == pytest.approx(1.0, abs=1e-5) for line in updates_of(trainer))


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


def test_a_fresh_policy_gains_nothing_over_itself(tmp_path):
    trainer = quick(tmp_path, eval_dataset=list(PROMPTS))
    metrics = trainer.evaluate()
    assert metrics["eval/gain"] == metrics["eval/gain_ci_low"] == metrics["eval/gain_ci_high"] == 0
    assert metrics["eval/score"] == metrics["eval/base_score"]
    assert metrics["eval/win_rate"] == 0.5
    assert metrics["eval/kl"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("count", [3, 37])
def test_evaluation_uses_every_held_out_prompt(count, tmp_path):
    asked = Listener()
    held_out = [f"t{3 + number % 9} t{3 + number // 9}" for number in range(count)]
    trainer = quick(tmp_path, reward_funcs=asked, eval_dataset=held_out, learning_rate=2e-2)
    trainer.train()
    asked.prompts, asked.ids = [], []
    metrics = trainer.evaluate()
    assert asked.prompts == held_out * 2  # the policy's answers, then the reference's
    own, base = asked.ids[:count], asked.ids[count:]
    assert metrics["eval/score"] == pytest.approx(sum(map(fours, own)) / count, abs=1e-5)
    assert metrics["eval/base_score"] == pytest.approx(sum(map(fours, base)) / count, abs=1e-5)
    assert metrics["eval/gain"] == pytest.approx(metrics["eval/score"] - metrics["eval/base_score"], abs=1e-5)
    assert metrics["eval/gain_ci_low"] <= metrics["eval/gain"] <= metrics["eval/gain_ci_high"]
    wins = [(fours(a) > fours(b)) + 0.5 * (fours(a) == fours(b)) for a, b in zip(own, base, strict=True)]
    assert metrics["eval/win_rate"] == pytest.approx(sum(wins) / count)
    assert metrics["eval/mean_length"] == pytest.approx(sum(map(len, own)) / count, abs=1e-5)
    assert metrics["eval/eos_rate"] == pytest.approx(sum(ids[-1] == EOS for ids in own) / count, abs=1e-5)
    assert metrics["eval/kl"] > 0


def test_evaluation_repeats_itself_and_leaves_training_alone(tmp_path):
    plain = quick(tmp_path / "plain")
    plain.train()
    watched = quick(tmp_path / "watched", eval_dataset=["<bos> t4", "t5"], eval_strategy="steps", eval_steps=1,
                    num_sample_generations=4)  # fmt: skip
    watched.train()
    assert torch.equal(weights(plain), weights(watched))
    lines = [line for line in watched.state.log_history if "eval/score" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert len({line["eval/base_score"] for line in lines}) == 1
    assert watched.evaluate() == watched.evaluate()


def test_evaluation_of_several_sets_by_name(tmp_path):
    sets = {"short": ["<bos>"], "long": [{"prompt": "t3 t4 t5"}, {"prompt": "t6 t7"}]}
    trainer = quick(tmp_path, eval_dataset=sets, eval_strategy="steps", eval_steps=2)
    trainer.train()
    metrics = trainer.evaluate()
    assert {name.split("/")[0] for name in metrics} == {"eval_short", "eval_long"}
    assert {"eval_short/gain", "eval_long/gain", "eval_long/kl"} <= metrics.keys()
    assert len([line for line in trainer.state.log_history if "eval_long/score" in line]) == 3
    other = trainer.evaluate(["t9"], metric_key_prefix="test")
    assert "test/score" in other and "test/gain" in other


def test_evaluation_may_take_several_samples_of_each_prompt(tmp_path):
    asked = Listener()
    trainer = quick(tmp_path, reward_funcs=asked, eval_dataset=["<bos>", "t3"], eval_num_samples_per_prompt=6)
    trainer.evaluate()
    assert asked.prompts == (["<bos>"] * 6 + ["t3"] * 6) * 2


def test_evaluation_without_prompts_is_refused(tmp_path):
    with pytest.raises(BadInput, match="eval_dataset"):
        quick(tmp_path).evaluate()


def test_sample_completions(tmp_path, capsys):
    trainer = quick(tmp_path, eval_dataset=["<bos> t4", "t5"], log_completions=True, num_completions_to_print=1)
    made = trainer.generate_completions()
    assert [sample["index"] for sample in made] == [0, 1]
    assert [sample["prompt"] for sample in made] == ["<bos> t4", "t5"]
    assert all(isinstance(sample["score"], float) and isinstance(sample["response"], str) for sample in made)
    assert made == trainer.generate_completions()
    printed = "".join(capsys.readouterr())
    assert "<bos> t4" in printed and "'t5' ->" not in printed
    best = trainer.generate_completions(["t5", {"prompt": "t5"}], greedy=True)
    assert best[0]["response"] == best[1]["response"] and best[0]["score"] == best[1]["score"]
    ids = tokenizer_of(SIZE)("t5", return_tensors="pt").input_ids
    own = trainer.model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, 1:]
    assert best[0]["response"] == tokenizer_of(SIZE).decode(own, skip_special_tokens=True).strip()


# ---------------------------------------------------------------------------------------------------------------------
# Prompts, as they may be given


def settings_for(folder, **changes):
    return PPOConfig(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
        num_sample_generations=0, **{
            "learning_rate": 3e-3, "per_device_train_batch_size": 8, "response_length": 4, "total_episodes": 16,
            **changes,
        },
    )  # fmt: skip


def test_a_call_written_for_trl_runs_unchanged(tmp_path):
    tokenizer = tokenizer_of(SIZE)
    tokenizer.padding_side = "left"
    padded = tokenizer(list(PROMPTS), padding=True)
    data = Dataset.from_dict({"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]})
    policy = undecided()
    trainer = PPOTrainer(
        args=settings_for(
            tmp_path, num_ppo_epochs=1, num_mini_batches=1, missing_eos_penalty=1.0, stop_token="eos",
            kl_estimator="k1", whiten_rewards=False, local_rollout_forward_batch_size=4,
            sft_model_path="x", reward_model_path="y", dataset_num_proc=2, ds3_gather_for_generation=True,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=copy.deepcopy(policy),
        reward_model=classifier(seed=1),
        value_model=classifier(seed=2),
        train_dataset=data,
        eval_dataset=data,
        peft_config=None,
        data_collator=None,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    trainer.generate_completions()
    line = updates_of(trainer)[0]
    of_trl = {
        "eps", "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward",
        "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg",
        "val/clipfrac_avg", "policy/entropy_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode",
    }  # fmt: skip
    assert of_trl <= line.keys()
    assert line["objective/kl"] == pytest.approx(0, abs=1e-5)


def test_pads_of_tokenised_prompts_are_told_by_the_mask_alone(tmp_path):
    """The same prompts as text, as ids, and as ids padded on the left with the end token, train the same policy."""
    tokenizer = tokenizer_of(SIZE)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    padded = tokenizer(list(PROMPTS), padding=True)
    rows = [
        {"input_ids": ids, "attention_mask": mask}
        for ids, mask in zip(padded["input_ids"], padded["attention_mask"], strict=True)
    ]
    plain = [{"input_ids": ids} for ids in tokenizer(list(PROMPTS))["input_ids"]]
    tensors = [{name: torch.tensor(value) for name, value in row.items()} for row in rows]
    formatted = Dataset.from_list(rows).with_format("torch")
    found = [
        weights_after(quick(tmp_path, train_dataset=given, total_episodes=16))
        for given in (PROMPTS, plain, rows, tensors, formatted)
    ]
    for other in found[1:]:
        assert torch.equal(found[0], other)


def test_conversations_go_through_the_chat_template(tmp_path):
    tokenizer = tokenizer_of(SIZE)
    tokenizer.chat_template = CHAT_TEMPLATE + "{% if deep %}t9 {% endif %}{% if add_generation_prompt %}t3{% endif %}"
    conversations = [[{"role": "user", "content": "t5"}], [{"role": "user", "content": "t6 t7"}]]
    seen = []

    def reward(prompts, completions, **columns):
        seen.append((prompts, completions))
        return [float(len(completion[0]["content"])) for completion in completions]

    trainer = quick(
        tmp_path, reward_funcs=reward, processing_class=tokenizer, chat_template_kwargs={"deep": True},
        train_dataset=[{"prompt": messages} for messages in conversations],
    )  # fmt: skip
    assert [prompt.ids for prompt in trainer.prompts.prompts] == [[1, 5, 9, 3], [1, 6, 7, 9, 3]]
    trainer.train()
    prompts, completions = seen[0]
    assert all(prompt in conversations for prompt in prompts)
    assert all(completion[0]["role"] == "assistant" for completion in completions)
    with pytest.raises(BadInput, match="chat template"):
        quick(tmp_path, train_dataset=[{"prompt": messages} for messages in conversations])


def test_a_stream_of_prompts_needs_a_number_of_updates(tmp_path):
    def rows():
        for number in range(6):
            yield {"prompt": f"t{3 + number}"}

    class Stream:
        __iter__ = staticmethod(rows)

    for stream in (IterableDataset.from_generator(rows), Stream()):
        asked = Listener()
        args = settings_for(tmp_path, total_episodes=None, max_steps=2)
        trainer = PPOTrainer(undecided(), args, tokenizer_of(SIZE), asked, train_dataset=stream)
        trainer.train()
        assert trainer.state.global_step == 2
        assert asked.prompts == [f"t{3 + number % 6}" for number in range(16)]
    with pytest.raises(BadInput, match="max_steps"):
        args = settings_for(tmp_path, total_episodes=None)
        PPOTrainer(undecided(), args, tokenizer_of(SIZE), Listener(), train_dataset=Stream())


def test_a_generator_is_read_once_and_its_end_is_told_from_emptiness(tmp_path):
    def trainer_of(count):
        stream = ({"prompt": f"t{3 + number % 9}"} for number in range(count))
        return PPOTrainer(
            undecided(), settings_for(tmp_path, max_steps=2), tokenizer_of(SIZE), Listener(), train_dataset=stream
        )

    trainer_of(16).train()
    with pytest.raises(BadInput, match="empty"):
        trainer_of(0).train()
    with pytest.raises(BadInput, match="ended|ran out|exhausted"):
        trainer_of(10).train()


# ---------------------------------------------------------------------------------------------------------------------
# Rewards, as they may be given


def test_reward_functions_are_told_what_they_ask_for(tmp_path):
    seen = {}

    def curious(prompts, completions, completion_ids, wanted, trainer_state, log_metric, log_extra):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, wanted=wanted)
        seen["step"] = trainer_state.global_step
        log_metric("share", 0.25)
        log_extra("note", ["x"] * len(prompts))
        return [0.5] * len(prompts)

    def incurious(completions, **kwargs):
        seen["all"] = set(kwargs)
        return [0.0] * len(completions)

    rows = [{"prompt": prompt, "wanted": number} for number, prompt in enumerate(PROMPTS)]
    trainer = quick(tmp_path, reward_funcs=[curious, incurious], train_dataset=rows, total_episodes=16)
    trainer.train()
    assert seen["wanted"] == [PROMPTS.index(prompt) for prompt in seen["prompts"]]
    assert seen["step"] == 0
    assert {"prompts", "completion_ids", "wanted", "trainer_state"} <= seen["all"]
    tokenizer = tokenizer_of(SIZE)
    assert seen["completions"] == tokenizer.batch_decode(seen["ids"], skip_special_tokens=True)
    line = updates_of(trainer)[0]
    assert line["rewards/curious/mean"] == 0.5 and line["objective/scores"] == 0.5
    assert any(line.get(name) == 0.25 for name in ("share", "share/mean"))


def numbers(kind):
    """The score `fours`, in the shapes in which a function may give it."""

    def reward(completion_ids):
        scores = [fours(ids) for ids in completion_ids]
        by_token = [[float(token == 4) - 0.1 for token in ids] for ids in completion_ids]
        return {
            "list": scores,
            "tuple": tuple(scores),
            "tensor": torch.tensor(scores, dtype=torch.double),
            "numpy": torch.tensor(scores, dtype=torch.double).numpy(),
            "list of tensors": list(torch.tensor(scores, dtype=torch.double)),
            "generator": (score for score in scores),
            "by token": by_token,
            "tuples by token": [tuple(row) for row in by_token],
            "tensors by token": [torch.tensor(row) for row in by_token],
            "numpy by token": [torch.tensor(row).numpy() for row in by_token],
        }[kind]

    return reward


@pytest.mark.parametrize("kind", ["tuple", "tensor", "numpy", "list of tensors", "generator"])
def test_scores_may_come_in_any_sequence_of_numbers(kind, tmp_path):
    settings = {"total_episodes": 16}
    expected = quick(tmp_path, reward_funcs=numbers("list"), **settings)
    found = quick(tmp_path, reward_funcs=numbers(kind), **settings)
    assert torch.allclose(weights_after(expected), weights_after(found), atol=1e-7)
    assert updates_of(found)[0]["rewards/reward/mean"] == pytest.approx(
        updates_of(expected)[0]["rewards/reward/mean"], abs=1e-6
    )


@pytest.mark.parametrize("kind", ["by token", "tuples by token", "tensors by token", "numpy by token"])
def test_rewards_may_be_given_by_token(kind, tmp_path):
    """A reward by token says which token earned it; the sum is the score all the same."""
    whole = quick(tmp_path, reward_funcs=numbers("list"), total_episodes=16)
    by_token = quick(tmp_path, reward_funcs=numbers(kind), total_episodes=16)
    assert not torch.equal(weights_after(whole), weights_after(by_token))
    for name in ("objective/scores", "objective/scores_raw", "rewards/reward/mean", "rewards/reward/std"):
        assert updates_of(by_token)[0][name] == pytest.approx(updates_of(whole)[0][name], abs=1e-5)
    expected = quick(tmp_path, reward_funcs=numbers("by token"), total_episodes=16)
    assert torch.allclose(weights_after(expected), weights(by_token), atol=1e-6)


def test_with_gae_off_rewards_by_token_reach_only_what_came_before_them(tmp_path):
    """With gamma and lambda 0, a token's advantage is its own reward, so the returns show where it was earned."""

    def reward(completion_ids):
        return [[2.0 if place == 0 else 0.0 for place in range(len(ids))] for ids in completion_ids]

    trainer = quick(tmp_path, reward_funcs=reward, gamma=0.0, lam=0.0, stop_token="none", total_episodes=16)
    trainer.train()
    line = updates_of(trainer)[0]
    assert line["returns/mean"] == pytest.approx(2.0 / 5, abs=1e-5)
    assert line["returns/var"] == pytest.approx(4.0 / 5 - 0.16, abs=1e-4)


def test_no_opinion_counts_for_nothing(tmp_path):
    def sometimes(completion_ids):
        return [10.0 if len(ids) == 5 else None for ids in completion_ids]

    asked = Listener()
    trainer = quick(tmp_path, reward_funcs=[asked, sometimes], reward_weights=[1.0, 0.5], total_episodes=16)
    trainer.train()
    opinions = sum(len(ids) == 5 for ids in asked.ids)
    assert 0 < opinions < 16
    line = updates_of(trainer)[0]
    assert line["rewards/sometimes/mean"] == 10.0
    expected = (sum(map(fours, asked.ids)) + 5.0 * opinions) / 16
    assert line["objective/scores_raw"] == pytest.approx(expected, abs=1e-5)


def test_functions_and_models_add_up_by_their_weights(tmp_path):
    judge, asked = classifier(), Listener()
    judge.config._name_or_path = "some/judge"
    # A seed whose responses do not end in the pad token, which Transformers' own pooling would pass over.
    trainer = quick(tmp_path, reward_funcs=[asked, judge], reward_weights=[0.5, 2.0], total_episodes=16, seed=0)
    trainer.train()
    prompts = tokenizer_of(SIZE)(asked.prompts)["input_ids"]
    plain = copy.deepcopy(judge)
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        scores = [
            plain(torch.tensor([prompt + ids])).logits.item() for prompt, ids in zip(prompts, asked.ids, strict=True)
        ]
    line = updates_of(trainer)[0]
    assert line["rewards/judge/mean"] == pytest.approx(sum(scores) / 16, abs=1e-5)
    expected = (0.5 * sum(map(fours, asked.ids)) + 2.0 * sum(scores)) / 16
    assert line["objective/scores_raw"] == pytest.approx(expected, abs=1e-5)
    assert line["rewards/Listener/mean"] == pytest.approx(sum(map(fours, asked.ids)) / 16, abs=1e-5)


def test_rewards_of_one_name_are_reported_apart(tmp_path):
    one, other = (lambda completions, number=number: [number] * len(completions) for number in (1.0, 5.0))
    trainer = quick(tmp_path, reward_funcs=[one, other], total_episodes=16)
    trainer.train()
    line = updates_of(trainer)[0]
    means = [value for name, value in line.items() if name.startswith("rewards/") and name.endswith("/mean")]
    assert sorted(means) == [1.0, 5.0] and line["objective/scores"] == 6.0


def letters_tokenizer(letters, end="<eos>"):
    """A tokenizer that reads letter by letter, so that texts can be put together."""
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<bos>", end, *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token=end)


def test_a_reward_model_with_a_tokenizer_of_its_own_reads_the_text(tmp_path):
    policys, judges = letters_tokenizer("abcdefghi"), letters_tokenizer("zyxwvutsrqponmlkjihgfedcba", end="</s>")
    judge, asked = classifier(len(judges)), Listener(lambda ids: 0.0)
    trainer = quick(
        tmp_path, reward_funcs=[judge, asked], processing_class=policys, reward_processing_classes=[judges, None],
        train_dataset=["ab", "c", "defg"], total_episodes=16,
    )  # fmt: skip
    trainer.train()
    scores = []
    for prompt, text, ids in zip(asked.prompts, asked.texts, asked.ids, strict=True):
        whole = judges(prompt + text + ("</s>" if ids[-1] == EOS else ""), return_tensors="pt")["input_ids"]
        assert 0 not in whole
        with torch.no_grad():
            scores.append(judge(whole).logits.item())
    assert updates_of(trainer)[0]["objective/scores_raw"] == pytest.approx(sum(scores) / 16, abs=1e-5)
    assert len(set(scores)) > 8


def test_a_judge_without_a_pad_token_reads_texts_of_different_lengths(tmp_path):
    judges = letters_tokenizer("zyxwvutsrqponmlkjihgfedcba", end="</s>")
    judges.pad_token = None
    judge = classifier(len(judges))
    judge.config.pad_token_id = None
    asked = Listener(lambda ids: 0.0)
    trainer = quick(
        tmp_path, reward_funcs=[judge, asked], processing_class=letters_tokenizer("abcdefghi"),
        reward_processing_classes=[judges, None], train_dataset=["ab", "c", "defg"], total_episodes=16,
    )  # fmt: skip
    trainer.train()
    scores = []
    for prompt, text, ids in zip(asked.prompts, asked.texts, asked.ids, strict=True):
        whole = judges(prompt + text + ("</s>" if ids[-1] == EOS else ""), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores.append(judge(whole).logits.item())
    assert updates_of(trainer)[0]["objective/scores_raw"] == pytest.approx(sum(scores) / 16, abs=1e-5)


def test_models_and_rewards_may_be_given_as_folders(tmp_path):
    policy, judge = undecided(), classifier()
    for model, name in ((policy, "policy"), (judge, "judge")):
        model.save_pretrained(tmp_path / name)
        tokenizer_of(SIZE).save_pretrained(tmp_path / name)
    trainer = PPOTrainer(
        str(tmp_path / "policy"), settings_for(tmp_path / "run"), reward_funcs=str(tmp_path / "judge"),
        ref_model=str(tmp_path / "policy"), value_model=str(tmp_path / "judge"), train_dataset=list(PROMPTS),
    )  # fmt: skip
    assert len(trainer.processing_class) == SIZE
    trainer.train()
    same = PPOTrainer(
        policy, settings_for(tmp_path / "run"), tokenizer_of(SIZE), judge, value_model=classifier(),
        train_dataset=list(PROMPTS),
    )  # fmt: skip
    same.train()
    assert torch.equal(weights(trainer), weights(same))
    assert "rewards/judge/mean" in updates_of(trainer)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def test_other_names_of_settings_are_accepted():
    config = PPOConfig(beta=0.2, epsilon=0.3, max_completion_length=7, use_cpu=True)
    assert (config.kl_coef, config.cliprange, config.response_length) == (0.2, 0.3, 7)
    config = PPOConfig(use_cpu=True)
    assert (config.kl_coef, config.cliprange, config.response_length) == (0.05, 0.2, 53)
    assert PPOConfig(beta=0.0, use_cpu=True).kl_coef == 0.0


def test_defaults_are_those_of_trl_unless_documented(tmp_path):
    config = PPOConfig(use_cpu=True)
    assert config.learning_rate == 3e-6 and config.num_ppo_epochs == 4 and config.num_mini_batches == 1
    assert config.temperature == 0.7 and config.vf_coef == 0.1 and config.cliprange_value == 0.2
    assert config.gamma == 1.0 and config.lam == 0.95 and not config.whiten_rewards
    assert config.seed == 42 and config.per_device_train_batch_size == 8 and config.num_sample_generations == 10
    assert config.stop_token == "eos"  # TRL: None, which never ends
    config = PPOConfig(per_device_train_batch_size=8, gradient_accumulation_steps=4, num_mini_batches=2, use_cpu=True,
                       total_episodes=100)  # fmt: skip
    assert config.batch_size == config.local_batch_size == 32
    assert config.local_mini_batch_size == 16 and config.num_total_batches == 4


def test_settings_can_be_read_from_a_command_line(tmp_path):
    """As TRL's own example script does."""
    (config,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--kl_coef", "0.1", "--stop_token", "eos", "--use_cpu", "true",
         "--missing_eos_penalty", "1.0", "--num_mini_batches", "2", "--kl_controller", "adaptive"]
    )  # fmt: skip
    assert config.kl_coef == 0.1 and config.stop_token == "eos" and config.missing_eos_penalty == 1.0
    assert config.num_mini_batches == 2 and config.kl_controller == "adaptive"


def test_settings_can_be_written_down(tmp_path):
    written = json.loads(settings_for(tmp_path, beta=0.3, num_mini_batches=2).to_json_string())
    assert written["kl_coef"] == 0.3 and written["num_mini_batches"] == 2


def test_an_estimator_of_kl_that_moves_the_optimum_is_for_the_log_only(tmp_path):
    with pytest.warns(UserWarning, match="k3"):
        other = quick(tmp_path, kl_estimator="k3")
    plain = quick(tmp_path)
    assert torch.equal(weights_after(plain), weights_after(other))
    assert updates_of(other)[-1]["objective/kl"] != updates_of(plain)[-1]["objective/kl"]
    assert all(line["objective/kl"] >= -1e-6 for line in updates_of(other))


@pytest.mark.parametrize(
    "given",
    [
        {"top_k": 50}, {"top_p": 0.9}, {"generation_kwargs": {"top_k": 5}}, {"generation_kwargs": {"top_p": 0.5}},
        {"generation_kwargs": {"repetition_penalty": 1.2}}, {"generation_kwargs": {"num_beams": 2}},
        {"generation_kwargs": {"do_sample": False}}, {"generation_kwargs": {"min_p": 0.1}},
    ],
)  # fmt: skip
def test_settings_that_sample_from_another_distribution_are_refused(given):
    with pytest.raises(BadInput, match="distribution|generation_kwargs"):
        PPOConfig(use_cpu=True, **given)


def test_settings_that_change_nothing_about_sampling_are_accepted():
    neutral = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "do_sample": True}
    assert PPOConfig(use_cpu=True, generation_kwargs=neutral).generation_kwargs == neutral


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"num_mini_batches": 3, "per_device_train_batch_size": 16}, "num_mini_batches"),
        ({"num_generations": 5, "per_device_train_batch_size": 16}, "num_generations"),
        ({"missing_eos_penalty": 1.0, "stop_token": "none"}, "missing_eos_penalty"),
        ({"missing_eos_penalty": 1.0, "stop_token": None}, "missing_eos_penalty"),
        ({"mask_truncated_completions": True, "stop_token": "none"}, "mask_truncated_completions"),
        ({"stop_token": "."}, "stop_token_id"),
        ({"temperature": 0.0}, "temperature"),
        ({"cliprange": -0.1}, "cliprange"),
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"lam": 1.5}, "lam"),
        ({"num_ppo_epochs": 0}, "num_ppo_epochs"),
        ({"total_episodes": 8, "per_device_train_batch_size": 16}, "total_episodes"),
        ({"fp16": True}, "fp16"),
        ({"kl_estimator": "k2"}, "kl_estimator"),
        ({"kl_controller": "magic"}, "kl_controller"),
        ({"reward_normalization": "batch"}, "reward_normalization"),
        ({"value_head": "double"}, "value_head"),
        ({"max_completion_length": 0}, "response_length|max_completion_length"),
        ({"local_rollout_forward_batch_size": 0}, "local_rollout_forward_batch_size"),
        ({"eval_num_samples_per_prompt": 0}, "eval_num_samples_per_prompt"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_with_a_sentence(given, reason):
    with pytest.raises(BadInput, match=reason):
        PPOConfig(use_cpu=True, **given)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def test_the_old_order_of_arguments_is_a_type_error_that_names_the_fix(tmp_path):
    args, tokenizer, model = settings_for(tmp_path), tokenizer_of(SIZE), undecided()
    with pytest.raises(TypeError, match="model first"):
        PPOTrainer(args, tokenizer, model, reward_model=fours, train_dataset=list(PROMPTS))
    with pytest.raises(TypeError, match="model first|keyword"):
        PPOTrainer(args, tokenizer, model, None, classifier(), list(PROMPTS), classifier())


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"text": "t3"}], "prompt.*input_ids.*text"),
        ([], "empty"),
        (["t3", ""], "empty"),
        ([{"prompt": None}], "prompt"),
        ([{"input_ids": []}], "empty"),
        ([{"input_ids": [3, 4], "attention_mask": [0, 0]}], "empty"),
        (["t3 " * 12], "no room"),
        ([{"prompt": []}], "prompt"),
        ([7], "prompt"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_answered_are_refused_at_once(rows, reason, tmp_path):
    with pytest.raises(BadInput, match=reason):
        quick(tmp_path, train_dataset=rows)
    if rows:
        with pytest.raises(BadInput, match=reason):
            quick(tmp_path, eval_dataset=rows)


def test_a_data_set_of_another_kind_is_refused(tmp_path):
    with pytest.raises(BadInput, match="train_dataset"):
        PPOTrainer(undecided(), settings_for(tmp_path), tokenizer_of(SIZE), Listener())
    with pytest.raises(BadInput, match="no room"):
        quick(tmp_path, response_length=16)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda ids: [1.0], "1 scores for 16"),
        (lambda ids: [None] * len(ids), "None for every"),
        (lambda ids: [1.0] * 15 + [float("nan")], "nan"),
        (lambda ids: [float("inf")] * 16, "inf"),
        (lambda ids: [[1.0]] * 15 + [[1.0] * 9], "tokens of completion"),
        (lambda ids: [[float("nan")] * len(row) for row in ids], "nan"),
        (lambda ids: ["good"] * 16, "number"),
        (lambda ids: [None, *[[None] * len(row) for row in ids[1:]]], "number|None"),
        (lambda ids: None, "list|None"),
        (lambda ids: 1.0, "list|number"),
        (lambda ids: torch.ones(16, 3), "tokens of completion"),
    ],
)  # fmt: skip
def test_scores_that_are_none_are_refused_by_the_functions_name(answer, reason, tmp_path):
    def strange(completion_ids):
        return answer(completion_ids)

    trainer = quick(tmp_path, reward_funcs=strange, score=None)
    before = weights(trainer)
    with pytest.raises(BadInput, match="strange") as raised:
        trainer.train()
    raised.match(reason)
    assert torch.equal(weights(trainer), before)


def test_rewards_that_cannot_judge_are_refused(tmp_path):
    for reward, reason in (
        (torch.nn.Linear(2, 1), "wrap it in a function"),
        (classifier(num_labels=2), "num_labels=1"),
        (undecided(), "sequence classifier"),
        (classifier(SIZE - 4), "reward_processing_classes"),
        (3, "function"),
        ([], "reward"),
        (None, "reward"),
    ):
        with pytest.raises(BadInput, match=reason):
            quick(tmp_path, reward_model=reward)
    with pytest.raises(BadInput, match="reward_weights"):
        quick(tmp_path, reward_weights=[1.0, 2.0])
    with pytest.raises(BadInput, match="reward_processing_classes"):
        quick(tmp_path, reward_processing_classes=[None, None])


def test_two_rewards_at_once_are_not_chosen_from_in_silence(tmp_path):
    with pytest.raises(BadInput, match="reward_model"):
        PPOTrainer(
            undecided(), settings_for(tmp_path), tokenizer_of(SIZE), Listener(), reward_model=classifier(),
            train_dataset=list(PROMPTS),
        )  # fmt: skip


def test_models_that_do_not_belong_together_are_refused(tmp_path):
    model = undecided()
    with pytest.raises(BadInput, match="do not belong together"):
        quick(tmp_path, model, processing_class=tokenizer_of(SIZE + 2))
    with pytest.raises(BadInput, match="do not belong together"):
        quick(tmp_path, undecided(40), processing_class=tokenizer_of(SIZE))
    with pytest.raises(BadInput, match="processing_class"):
        quick(tmp_path, model, processing_class=None)
    with pytest.raises(BadInput, match="ref_model must not be"):
        quick(tmp_path, model, ref_model=model)
    with pytest.raises(BadInput, match="ref"):
        quick(tmp_path, model, ref_model=undecided(SIZE + 4)).train()


def test_value_models_that_cannot_value_are_refused(tmp_path):
    for critic in (undecided(), classifier(num_labels=2), classifier(SIZE - 4), torch.nn.Linear(2, 1)):
        with pytest.raises(BadInput, match="value"):
            quick(tmp_path, value_model=critic)
    judge = classifier()
    with pytest.raises(BadInput, match="value_model"):
        quick(tmp_path, reward_model=judge, value_model=judge)  # it would change while it judges


def test_a_model_that_is_no_language_model_is_refused(tmp_path):
    for model in (classifier(), torch.nn.Linear(2, 1)):
        with pytest.raises((BadInput, TypeError), match="model"):
            PPOTrainer(model, settings_for(tmp_path), tokenizer_of(SIZE), Listener(), train_dataset=list(PROMPTS))
