"""Parity with TRL 1.12, whose PPOTrainer this one replaces, on batches whose responses are given.

The fixtures hold what TRL computed, and the weights it began with; `record_trl.py` says how they were made. Where no
response ends before the limit, all numbers agree. Where some do, TRL goes one position further than the response, and
the tests say where exactly.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast
from worlds import replace

from rlhf.models.generate import Generation
from rlhf.models.packed import hidden_states, pack_responses, use_packed_attention
from rlhf.ppo import PPOConfig, PPOTrainer, algorithm
from rlhf.ppo.algorithm import compute_gae, value_losses, whiten
from rlhf.ppo.metrics import update_metrics


FIXTURE = Path(__file__).parent / "fixtures" / "trl_1_12"
TOLERANCE = 1e-5
PER_TOKEN = ("logprobs", "ref_logprobs", "values", "kl", "non_score_reward", "rewards", "advantages", "returns")
BEFORE_LEARNING = (
    "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores",
    "val/num_eos_tokens", "lr", "episode",
)  # fmt: skip
WHILE_LEARNING = (
    "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg",
    "val/clipfrac_avg", "val/ratio",
)  # fmt: skip
STEPS = {
    "pg_loss": "policy_loss", "vf_loss": "value_loss", "pg_clipfrac": "policy_clipped",
    "vf_clipfrac": "value_clipped", "approxkl": "k2", "entropy": "entropy", "ratio": "ratio",
}  # fmt: skip
"""TRL's names of what is seen in an optimizer step, and the names here."""


@dataclass
class Update:
    """What one update of this project's trainer computed, rows in the order of the fixture's prompts."""

    tokens: dict[str, torch.Tensor]
    mask: torch.Tensor
    steps: dict[str, list[float]]


@dataclass
class Run:
    """A finished run on a fixture's batch, beside what TRL saw."""

    trl: list[dict]
    lengths: torch.Tensor
    updates: list[Update]
    metrics: list[dict]
    gradient: dict[str, torch.Tensor]
    trainer: PPOTrainer


def watched(trainer, rollout, stats, clock):
    """`update_metrics`, which notes the rollout and the optimizer steps of each update."""
    order = [[prompt.ids for prompt in rollout.prompts].index(prompt) for prompt in trainer.expected]
    names = ("logprobs", "ref_logprobs", "values", "scores", "rewards", "advantages", "returns")
    tokens = {name: getattr(rollout, name) for name in names}
    tokens |= {"kl": rollout.logprobs - rollout.ref_logprobs, "non_score_reward": rollout.non_score_rewards}
    tokens = {name: value[order] for name, value in tokens.items()}
    steps = {name: [float(step[own] / step["num_tokens"]) for step in stats.steps] for name, own in STEPS.items()}
    trainer.updates.append(Update(tokens, rollout.mask[order], steps))
    return update_metrics(trainer, rollout, stats, clock)


def say(answers):
    """A stand-in for `rlhf.models.generate.generate`: each prompt gets its answer, read instead of sampled."""

    @torch.no_grad()
    def generate(model, queries, *, max_new_tokens, temperature, eos_id, generator, keep_hidden):
        use_packed_attention(model)
        said = [answers[tuple(query)] for query in queries]
        rows = [query + answer for query, answer in zip(queries, said, strict=True)]
        ids, lined_up, positions, targets = pack_responses(rows, [len(query) for query in queries], model.device)
        states = hidden_states(model, ids, lined_up, positions)
        distribution = torch.log_softmax(model.get_output_embeddings()(states) / temperature, dim=-1)
        mask = torch.arange(max_new_tokens) < torch.tensor([len(answer) for answer in said]).unsqueeze(1)
        responses, logprobs = torch.zeros(mask.shape, dtype=torch.long), torch.zeros(mask.shape)
        hidden = torch.zeros(*mask.shape, states.size(1))
        responses[mask], hidden[mask] = targets, states
        logprobs[mask] = distribution.gather(1, targets.unsqueeze(1)).squeeze(1)
        return Generation(responses, mask, logprobs, torch.tensor([a[-1] == eos_id for a in said]), hidden)

    return generate


@pytest.fixture(scope="module")
def recorded():
    """TRL's numbers, and the weights it began and ended with."""
    return json.loads(FIXTURE.with_suffix(".json").read_text("utf-8")), load_file(FIXTURE.with_suffix(".safetensors"))


@pytest.fixture(scope="module")
def run(recorded, one_thread, tmp_path_factory):
    """`run(case)`: this project's trainer on the batch of a case; each case is run once."""
    finished = {}

    def of_case(name):
        if name not in finished:
            with pytest.MonkeyPatch.context() as patch:
                finished[name] = train(*recorded, name, tmp_path_factory.mktemp(name), patch)
        return finished[name]

    return of_case


def model_of(kind, numbers, weights, name):
    """A model with the weights that TRL began with."""
    model = kind(GPT2Config(**numbers["model"]))
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.copy_(weights[f"{name}.{key}"])
    return model


def train(numbers, weights, name, folder, patch):
    case, prompts = numbers["cases"][name], numbers["prompts"]
    policy, reference = (model_of(GPT2LMHeadModel, numbers, weights, role) for role in ("policy", "ref"))
    reward, value = (model_of(GPT2ForSequenceClassification, numbers, weights, role) for role in ("reward", "value"))
    answers = {tuple(prompt): answer for prompt, answer in zip(prompts, case["responses"], strict=True)}
    replace(patch, "generate", say(answers))
    # TRL clips no gradient, so here the limit is out of reach.
    args = PPOConfig(
        str(folder), **case["settings"], max_grad_norm=1e9, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    patch.setattr(algorithm, "update_metrics", watched)
    trainer = PPOTrainer(
        policy,
        args,
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(numbers["tokenizer"])),
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
        ),
        reward_model=reward,
        ref_model=reference,
        value_model=value,
        train_dataset=[{"input_ids": prompt} for prompt in prompts],
    )
    trainer.expected, trainer.updates = prompts, []
    gradient = {}

    def note_gradient(*_):
        if not gradient:
            gradient.update({key: parameter.grad.clone() for key, parameter in parameters_of(trainer).items()})

    trainer.optimizer.register_step_pre_hook(note_gradient)
    trainer.train()
    metrics = [line for line in trainer.state.log_history if "objective/kl" in line]
    lengths = torch.tensor([len(answer) for answer in case["responses"]])
    return Run(case["updates"], lengths, trainer.updates, metrics, gradient, trainer)


def parameters_of(trainer):
    """What TRL trained too, under the names of the fixture."""
    models = {"policy": trainer.model, "value": trainer.value_model}
    return {f"{name}.{key}": value for name, model in models.items() for key, value in model.named_parameters()}


def assert_equal(ours, trl, what):
    trl = torch.as_tensor(trl, dtype=torch.float32)
    off = (torch.as_tensor(ours, dtype=torch.float32) - trl).abs().max().item()
    assert off <= TOLERANCE, f"{what} is {off:.2e} from TRL's"


def assert_metrics_equal(ours, trl, names):
    for name in names:
        assert ours[name] == pytest.approx(trl[name], abs=TOLERANCE, rel=TOLERANCE), name


def assert_weights_equal(ours, weights, prefix):
    trl = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    assert ours.keys() == trl.keys()
    for key, value in ours.items():
        assert_equal(value.detach(), trl[key], key)


# ---------------------------------------------------------------------------------------------------------------------
# No response ends before the limit: nothing differs


def test_a_fixed_batch_gives_trls_number_for_every_token(run):
    full = run("full")
    (ours,), (trl,) = full.updates, full.trl
    assert ours.mask.all()
    assert torch.tensor(trl["kl"]).abs().max() > 0.1  # the reference is another model
    for name in PER_TOKEN:
        assert_equal(ours.tokens[name], trl[name], name)
    assert_equal(ours.tokens["scores"], trl["scores"], "scores")


def test_a_fixed_batch_gives_trls_metrics(run):
    full = run("full")
    assert_metrics_equal(full.metrics[0], full.trl[0]["metrics"], BEFORE_LEARNING + WHILE_LEARNING)
    for name in STEPS:
        assert_equal(full.updates[0].steps[name], full.trl[0]["steps"][name], name)


def test_a_fixed_batch_gives_trls_gradient_and_weights_after_the_step(run, recorded):
    full, (_, weights) = run("full"), recorded
    assert_weights_equal(full.gradient, weights, "full.gradient.")
    after = parameters_of(full.trainer)
    assert_weights_equal(after, weights, "full.after.")
    moved = torch.cat([(value - weights[key]).flatten() for key, value in after.items()]).abs()
    assert moved.max() > 50 * TOLERANCE  # the step was large enough to tell


@pytest.mark.filterwarnings("ignore:whiten_rewards")  # TRL allows it without a word
def test_several_epochs_and_updates_with_clipped_losses_and_whitened_rewards_stay_with_trl(run, recorded):
    passes, (_, weights) = run("passes"), recorded
    assert len(passes.metrics) == len(passes.trl) == 2
    for ours, metrics, trl in zip(passes.updates, passes.metrics, passes.trl, strict=True):
        assert trl["metrics"]["policy/clipfrac_avg"] > 0.05 and trl["metrics"]["val/clipfrac_avg"] > 0.05
        assert_metrics_equal(metrics, trl["metrics"], BEFORE_LEARNING + WHILE_LEARNING)
        for name in PER_TOKEN:
            assert_equal(ours.tokens[name], trl[name], name)
        for name in STEPS:
            assert_equal(ours.steps[name], trl["steps"][name], name)
        # TRL takes the unbiased variance, which a single step does not have.
        assert metrics["val/ratio_var"] * 3 / 2 == pytest.approx(trl["metrics"]["val/ratio_var"], abs=TOLERANCE)
    assert passes.metrics[1]["lr"] == passes.metrics[0]["lr"] / 2
    assert_weights_equal(parameters_of(passes.trainer), weights, "passes.after.")


# ---------------------------------------------------------------------------------------------------------------------
# Some responses end before the limit: TRL goes one position further there


def valid(run):
    """TRL's masks of the tokens and of the values, one position longer, and which rows end before the limit."""
    (trl,) = run.trl
    tokens, with_one_more = (~torch.tensor(trl[name]) for name in ("padding_mask", "padding_mask_p1"))
    return tokens, with_one_more, run.lengths < tokens.size(1)


def test_rows_that_end_early_have_trls_logprobs_values_scores_and_kl(run):
    ended = run("ended")
    (ours,), (trl,) = ended.updates, ended.trl
    tokens, _, early = valid(ended)
    assert early.any() and not early.all()
    assert torch.equal(ours.mask, tokens)
    for name in ("logprobs", "ref_logprobs", "values", "kl", "non_score_reward"):
        assert_equal(ours.tokens[name][tokens], torch.tensor(trl[name])[tokens], name)
    assert_equal(ours.tokens["scores"], trl["scores"], "scores")
    assert_metrics_equal(ended.metrics[0], trl["metrics"], BEFORE_LEARNING)


def test_a_score_lies_at_the_last_token_where_trl_puts_it_behind_an_early_end(run):
    ended = run("ended")
    (ours,), (trl,) = ended.updates, ended.trl
    _, _, early = valid(ended)
    last = ended.lengths - 1
    rows, scores = torch.arange(len(last)), torch.tensor(trl["scores"])
    at_ours, at_trls = torch.zeros(2, *ours.mask.shape)
    at_ours[rows, last] = scores
    at_trls[rows, last + early.long()] = scores
    assert_equal(ours.tokens["rewards"] - ours.tokens["non_score_reward"], at_ours, "where a score lies")
    assert_equal(
        torch.tensor(trl["rewards"]) - torch.tensor(trl["non_score_reward"]), at_trls, "TRL's place of a score"
    )


def test_rows_that_fill_the_limit_have_trls_rewards_and_returns(run):
    ended = run("ended")
    (ours,), (trl,) = ended.updates, ended.trl
    _, _, early = valid(ended)
    for name in ("rewards", "returns"):
        assert_equal(ours.tokens[name][~early], torch.tensor(trl[name])[~early], name)
        assert (ours.tokens[name][early] - torch.tensor(trl[name])[early]).abs().max() > 100 * TOLERANCE


def test_the_one_position_more_is_all_that_parts_trls_returns_advantages_and_losses(run):
    """TRL's numbers follow from the formulas here once they, too, have a value behind an early end and learn it."""
    ended = run("ended")
    (ours,), (trl,), args = ended.updates, ended.trl, ended.trainer.args
    tokens, with_one_more, early = valid(ended)
    assert torch.equal(with_one_more.sum(dim=1), ended.lengths + early)
    rewards, values, returns = (torch.tensor(trl[name]) for name in ("rewards", "values", "returns"))
    advantages, found = compute_gae(rewards, values, with_one_more, args.gamma, args.lam)
    assert_equal(found, returns, "returns")
    assert_equal(whiten(advantages, tokens), trl["advantages"], "advantages")

    def value_loss(values, returns, mask):
        loss, _ = value_losses(values[mask], values[mask], returns[mask], args.cliprange_value)
        return loss.mean().item()

    assert value_loss(values, returns, with_one_more) == pytest.approx(trl["metrics"]["loss/value_avg"], abs=TOLERANCE)
    own = value_loss(ours.tokens["values"], ours.tokens["returns"], tokens)
    assert own == pytest.approx(ended.metrics[0]["loss/value_avg"], abs=TOLERANCE)
