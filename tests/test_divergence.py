"""Training that goes wrong for good: it ends with the cause named, and nothing of it is saved as good."""

import json
import math
import random

import pytest
import torch
from safetensors.torch import load_file
from trl import RewardTrainer
from worlds import EOS, PROMPTS, chat_model, quick, updates_of

from rlhf import metrics
from rlhf.ppo import Diverged
from rlhf.runs.directory import EXAMPLE, RECORD, Run
from rlhf.runs.divergence import PERSISTS, Watch, warning_signs
from rlhf.runs.files import write_json
from rlhf.ui import live
from rlhf.ui.headline import warning


pytestmark = pytest.mark.usefixtures("one_thread")


def after_step(optimizer, number, change):
    """Let something change right after an optimizer step, counted from 1."""
    count = iter(range(1, 1000))
    optimizer.register_step_post_hook(lambda *_: change() if next(count) == number else None)


@torch.no_grad()
def spoil(tensor, value):
    tensor.view(-1)[0] = value


# Numbers that are not finite -----------------------------------------------------------------------------------------


def spoilt_from_outside(trainer, part, value, update):
    """Have a part of an update's rollout hold this value somewhere."""
    owner, name, of = {
        "A score": (trainer, "score", lambda found: found[0]),
        "A log-probability": (trainer, "roll_out", lambda found: found.generation.logprobs),
        "A log-probability of the reference": (trainer.actor_critic, "reference_logprobs", lambda found: found[0]),
        "A value of the critic": (trainer.actor_critic, "values", lambda found: found),
    }[part]
    measure, count = getattr(owner, name), iter(range(1, 100))

    def measured(*args):
        found = measure(*args)
        if next(count) == update:
            spoil(of(found), value)
        return found

    setattr(owner, name, measured)


def spoilt_by_a_step(trainer, part, value, update):
    """Have the only optimizer step of an update leave this value somewhere."""
    weight = trainer.model.transformer.h[0].mlp.c_fc.weight
    of = {
        "The weight transformer.h.0.mlp.c_fc.weight": lambda: weight,
        "The weight score.weight": lambda: trainer.value_model.score.weight,
        "The optimizer's exp_avg of transformer": lambda: trainer.optimizer.state[weight]["exp_avg"],
        "The optimizer's exp_avg_sq of transformer": lambda: trainer.optimizer.state[weight]["exp_avg_sq"],
    }[part]
    after_step(trainer.optimizer, update, lambda: spoil(of(), value))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("part", "spoils"),
    [
        ("A score", spoilt_from_outside),
        ("A log-probability", spoilt_from_outside),
        ("A log-probability of the reference", spoilt_from_outside),
        ("A value of the critic", spoilt_from_outside),
        ("The weight transformer.h.0.mlp.c_fc.weight", spoilt_by_a_step),
        ("The weight score.weight", spoilt_by_a_step),
        ("The optimizer's exp_avg of transformer", spoilt_by_a_step),
        ("The optimizer's exp_avg_sq of transformer", spoilt_by_a_step),
    ],
)
def test_ppo_ends_at_the_first_number_that_is_not_finite(part, spoils, value, tmp_path):
    """In the last of two updates too, after which nothing would be computed from it any more."""
    trainer = quick(tmp_path, total_episodes=32, num_ppo_epochs=1, save_strategy="steps", save_steps=1)
    spoils(trainer, part, value, update=2)
    with pytest.raises(Diverged, match=f"^{part}.* was not finite at update 2"):
        trainer.train()
    assert trainer.state.global_step == 1
    files = list(tmp_path.rglob("*.safetensors"))
    assert {file.parent.name for file in files} == {"checkpoint-1"}
    assert all(tensor.isfinite().all() for file in files for tensor in load_file(file).values())


# Settings that nobody should choose ----------------------------------------------------------------------------------

ABSURD = {
    "learning_rate": ("1", "0.1", "1e-12", "100"),
    "kl_coef": ("0", "1000"),
    "kl_controller": ("adaptive",),
    "temperature": ("0.01", "50", "0"),
    "cliprange": ("10", "1e-9"),
    "dual_clip": ("1.0001",),
    "target_kl": ("1e-9",),
    "response_length": ("1",),
    "num_generations": ("1", "2", "3"),
    "num_ppo_epochs": ("20",),
    "num_mini_batches": ("4",),
    "advantage_estimator": ("gae", "rloo", "grpo", "reinforce++"),
    "gamma": ("0",),
    "lam": ("0",),
    "vf_coef": ("1000",),
    "value_head": ("separate",),
    "value_learning_rate": ("1",),
    "max_grad_norm": ("1e-9", "1e9"),
    "adam_epsilon": ("1",),
    "entropy_coef": ("10", "1e300"),
    "missing_eos_penalty": ("1000", "1e6"),
    "mask_truncated_completions": ("true",),
    "reward_normalization": ("reference", "running"),
    "reward_clip_range": ("1e-9",),
    "whiten_rewards": ("true",),
    "max_steps": ("1",),
}


@pytest.mark.process
def test_absurd_settings_end_the_run_with_a_reason_or_not_at_all(command, few_pairs, tmp_path, long, tries):
    chat_model(tmp_path / "model", template=False)
    given = ("ppo", "--model_name_or_path", "model", "--dataset_name", few_pairs, "--reward_funcs", "length:20")
    given += ("--ceiling_samples", 0, "--per_device_train_batch_size", 4)
    usual = {"response_length": "6", "max_steps": "5", "num_sample_generations": "2"}
    rng, count = random.Random(0), 60 if long else 8
    for number in range(count):
        chosen = {name: rng.choice(ABSURD[name]) for name in rng.sample(sorted(ABSURD), rng.randint(1, 5))}
        words = [word for name, value in (usual | chosen).items() for word in (f"--{name}", value)]
        run = Run(tmp_path / f"run-{number}")
        done = command(*given, *words, "--output_dir", run.path)
        assert "Traceback" not in done.stderr, (chosen, done.stderr[-2000:])
        if done.returncode == 0:
            assert run.status()["state"] == "finished"
            assert all(tensor.isfinite().all() for tensor in load_file(run.path / "model/model.safetensors").values())
        elif run.path.exists():
            assert run.status()["state"] == "diverged" and run.status()["message"]
            assert not (run.path / "model").exists(), chosen
        else:
            assert done.stderr.count("error: ") == 1, (chosen, done.stderr)
        for line in (run.path / "metrics.jsonl").read_text().splitlines() if run.path.exists() else ():
            json.loads(line, parse_constant=pytest.fail)  # NaN and infinity are no JSON
    tries(count)


# Steps on pairs ------------------------------------------------------------------------------------------------------

PAIRS = ("--max_steps", 3, "--per_device_train_batch_size", 4, "--save_steps", 1, "--eval_steps", 100)


@pytest.mark.parametrize(("kind", "part"), [("reward", "weight"), ("dpo", "exp_avg_sq")])
def test_a_step_on_pairs_that_leaves_nan_is_not_saved(kind, part, command, few_pairs, tmp_path, monkeypatch):
    step, count = torch.optim.AdamW.step, iter(range(1, 100))

    def spoiling(optimizer, *args):
        step(optimizer, *args)
        weight = optimizer.param_groups[0]["params"][0]
        if next(count) == 3:
            spoil(weight if part == "weight" else optimizer.state[weight][part], math.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
    done = command(kind, "--dataset_name", few_pairs, *PAIRS, "--output_dir", "run")
    assert done.returncode == 2 and "was not finite at step 3; lower learning_rate." in done.stderr
    run = Run(tmp_path / "run")
    assert run.status()["state"] == "diverged" and not (run.path / "model").exists()
    assert run.status()["message"].endswith("the curves and the checkpoint of step 2 are kept.")
    assert sorted(folder.name for folder in (run.path / "checkpoints").glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
    ]


def test_a_loss_that_is_nan_is_never_logged_as_a_number_also_where_no_line_is_due(command, few_pairs, monkeypatch):
    compute, count = RewardTrainer.compute_loss, iter(range(1, 100))

    def spoilt(trainer, *args, **settings):
        loss = compute(trainer, *args, **settings)
        return loss + math.nan if next(count) == 3 else loss  # of which the gradient is finite

    monkeypatch.setattr(RewardTrainer, "compute_loss", spoilt)
    done = command("reward", "--dataset_name", few_pairs, *PAIRS, "--logging_steps", 2, "--output_dir", "run")
    assert done.returncode == 2 and "The loss was not finite at step 3" in done.stderr
    assert [row["loss"] for row in Run("run").metrics() if "loss" in row] == [pytest.approx(0.69, abs=0.1)]
    assert Run("run").metrics()[-1]["train_loss"] is None


def test_a_demo_says_that_its_stage_diverged(command, few_pairs, monkeypatch):
    step = torch.optim.AdamW.step

    def spoiling(optimizer, *args):
        step(optimizer, *args)
        spoil(optimizer.param_groups[0]["params"][0], math.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
    done = command("demo", "--dataset_name", few_pairs, "--reward_max_steps", 2, "--output_dir", "run")
    assert done.returncode == 2
    for run in (Run("run"), Run("run/reward")):
        assert run.status()["state"] == "diverged" and "was not finite at step 1" in run.status()["message"]
    assert not list(Run("run").path.rglob("*.safetensors"))


# Numbers that are finite ---------------------------------------------------------------------------------------------


def test_good_runs_show_no_sign_of_having_gone_wrong():
    """The example, its other seeds, and SmolLM2's, whose answers all run into the limit at first."""
    for folder in (EXAMPLE / "ppo", *(EXAMPLE / "compare").glob("ppo-seed-*"), RECORD / "ppo"):
        updates = [row for row in Run(folder).metrics() if metrics.SCORE in row]
        assert len(updates) >= 20
        assert not any(warning_signs(update, updates[0]) for update in updates)


def drift(trainer, token):
    """Push a policy towards one token at every position, whatever the rewards say."""
    head, after = trainer.model.lm_head.weight, trainer.model.transformer.ln_f.bias

    @torch.no_grad()
    def push(*_):
        after.fill_(1.0)
        head.fill_(0.0)
        head[token] = 4.0

    trainer.optimizer.register_step_post_hook(push)


@pytest.mark.parametrize("token", [4, EOS])
def test_a_policy_that_gives_one_answer_to_all_ends_and_its_last_good_checkpoint_is_kept(token, tmp_path):
    def score(ids):
        return -float(ids.count(token))

    trainer = quick(tmp_path, score=score, total_episodes=16 * 9, save_strategy="steps", save_steps=1)
    drift(trainer, token)
    with pytest.raises(Diverged, match="^All answers are .*Updates 2 to 4 scored lower than the first one") as ended:
        trainer.train()
    assert ("empty" if token == EOS else "the same") in str(ended.value)
    assert [update["step"] for update in updates_of(trainer)] == [1, 2, 3, 4]
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize(
    "score",
    [
        pytest.param(lambda ids: float(ids.count(4)), id="it is what was asked for"),
        pytest.param(lambda ids: 1.0, id="the reward gives everything the same"),
    ],
)
@pytest.mark.parametrize("normalization", ["none", "reference", "running"])
def test_one_answer_to_all_is_no_end_where_the_score_has_not_fallen(score, normalization, tmp_path):
    trainer = quick(tmp_path, score=score, total_episodes=16 * 6, reward_normalization=normalization)
    drift(trainer, 4)
    trainer.train()
    first, *_, last = updates_of(trainer)
    assert warning_signs(last, first).keys() >= {"entropy", "same"}


def test_answers_of_one_token_are_no_sign(tmp_path):
    """All run into the limit, or are empty, by what was asked for."""
    trainer = quick(tmp_path, total_episodes=16 * 6, response_length=1, train_dataset=PROMPTS[:1])
    trainer.train()
    first, *updates = updates_of(trainer)
    assert not any(warning_signs(update, first) for update in updates)


def test_three_updates_in_a_row_must_have_gone_wrong():
    good, *_ = (row for row in Run(EXAMPLE / "ppo").metrics() if metrics.SCORE in row)
    bad = good | {metrics.KL: 200.0, metrics.SCORE: -9.0, metrics.OBJECTIVE_SCORE: -9.0}
    watch = Watch()
    for number, update in enumerate([good, bad, bad, good, bad, bad], start=1):
        watch.look(update, number)
    assert watch.wrong == 2
    with pytest.raises(Diverged, match="KL is 7.6 nats per token. Updates 5 to 7 .* Try a higher kl_coef or"):
        watch.look(bad, 7)
    assert PERSISTS == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {metrics.KL: 24.0, metrics.KL_PENALTY: -2.4, metrics.OBJECTIVE_SCORE: 1.0},
            "The distance from the base model (KL 24.0 nats) costs more than the score has gained.",
        ),
        ({metrics.KL: 99.0}, "The base model would hardly ever write such answers: KL is 3.8 nats per token."),
        ({metrics.TOKEN_ENTROPY: 0.004}, "The model hardly varies its words any more: entropy is 1 % of what it was."),
        ({metrics.MOST_COMMON_RATIO: 1.0}, "All answers are the same, whatever is asked."),
        ({metrics.MEAN_LENGTH: 1.0}, "All answers are empty: the model ends them before the first word."),
        ({metrics.CLIPPED_RATIO: 1.0}, "No answer ends by itself any more: all run into response_length."),
    ],
)
def test_the_page_warns_while_it_happens_and_says_what_to_do(change, said, root):
    good, *_ = (row for row in Run(EXAMPLE / "ppo").metrics() if metrics.SCORE in row)
    run = Run.create(root / "ppo-20260101-000000-abcd", "ppo", {})
    run.start(10)
    told = []
    for update in (good, good | change, good):
        run.log(update)
        told.append(live.poll({"run": run.id})["warning"])
    assert told == ["", f"{said} Try a higher “KL coefficient” or a lower “Learning rate”.", ""]
    write_json(run.path / "status.json", {**run.status(), "state": "diverged"})
    assert warning(run.status(), [good, good | change]) == ""  # its headline says it
