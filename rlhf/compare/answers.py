"""Several models answer the same held-out prompts: the answers, their scores, the exact KL from the base.

All of it happens batch by batch, and each batch is yielded at once, so that memory does not grow with the prompts.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from rlhf.compare.stats import best_of_n_kl
from rlhf.compare.table import reward_column
from rlhf.models.generate import generate
from rlhf.models.packed import batches_by_length, hidden_states, logits_at, pack_responses, use_packed_attention
from rlhf.models.prompts import Messages, Prompt, readable
from rlhf.models.scoring import RewardScorer


BATCH = 64
"""Answers sampled at once."""
UNMEASURED_BATCH = 256
"""Answers sampled at once where nothing but their scores is kept; of a large model as many as the next allows."""
CACHE_AT_ONCE = 2**30
"""Bytes of keys and values that they may hold, so that they do not need more memory than training does."""
KL_BATCH_TOKENS = 1536
"""Tokens per forward pass for the KL, which needs two distributions over the vocabulary for each of them."""
LOGITS_AT_ONCE = 2**24
"""Entries of one such table (tokens, V) in memory at the same time; there are up to six."""
GoldScorer = Callable[[str, str], float]


@dataclass
class Contender:
    """A model in the comparison."""

    name: str
    load: Callable[[], PreTrainedModel]
    """Called when its turn comes, so that only one model besides the base is in memory at a time."""
    best_of: int = 1
    """Best-of-n sampling: of n answers the one with the highest score counts, a baseline without training."""


@dataclass
class Answers:
    """One model's responses to B prompts."""

    rows: list[list[int]]
    """Prompt and response ids, without padding."""
    prompt_lengths: list[int]
    texts: list[str]
    ended: list[bool]
    scores: list[float]
    by_reward: dict[str, list[float | None]] = field(default_factory=dict)
    """What each reward gave, by its name; the score is their weighted sum."""

    def take(self, indices: Sequence[int]) -> "Answers":
        """The answers at these indices."""
        columns = (self.rows, self.prompt_lengths, self.texts, self.ended, self.scores)
        by_reward = {name: [given[i] for i in indices] for name, given in self.by_reward.items()}
        return Answers(*([column[i] for i in indices] for column in columns), by_reward)


@dataclass
class AnswerSampler:
    """Samples and scores answers, with the same settings for every model."""

    scorer: RewardScorer
    response_length: int
    temperature: float

    def sample(self, model: PreTrainedModel, prompts: list[Prompt], generator: torch.Generator) -> Answers:
        """One scored answer of a model to each of B prompts."""
        reader = self.scorer.reader
        queries = [prompt.ids for prompt in prompts]
        generation = generate(
            model,
            queries,
            max_new_tokens=self.response_length,
            temperature=self.temperature,
            eos_id=reader.end_ids,
            generator=generator,
        )
        responses, ended = generation.lists(), generation.ended.tolist()
        scores, by_reward = self.scorer.each(prompts, responses, ended)
        return Answers(
            rows=[query + response for query, response in zip(queries, responses, strict=True)],
            prompt_lengths=list(map(len, queries)),
            texts=[reader.text(response).strip() for response in responses],
            ended=ended,
            scores=scores.tolist(),
            by_reward=by_reward,
        )

    def best_of(
        self, count: int, model: PreTrainedModel, prompts: list[Prompt], generator: torch.Generator
    ) -> Answers:
        """Of `count` answers of a model to each of B prompts, the one with the highest score."""
        answers = self.sample(model, [prompt for prompt in prompts for _ in range(count)], generator)
        best = torch.tensor(answers.scores).view(-1, count).argmax(dim=1).tolist()
        return answers.take([row * count + column for row, column in enumerate(best)])

    def sample_each(
        self,
        model: PreTrainedModel,
        prompts: list[Prompt],
        count: int,
        *,
        gold: GoldScorer | None,
        seed: int,
    ) -> Iterator[tuple[list[float], list[float]]]:
        """Scores and gold scores of `count` answers to each of P prompts, prompt by prompt, a batch at a time.

        Without a gold scorer the gold scores are empty.
        """
        generator = torch.Generator().manual_seed(seed)
        asked = [prompt for prompt in prompts for _ in range(count)]
        # A key and a value for each layer and token; models whose heads share them (GQA) need less.
        config, longest = model.config.get_text_config(), max(len(prompt.ids) for prompt in prompts)
        a_token = 2 * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize
        an_answer = a_token * (longest + self.response_length)
        batch = max(1, min(UNMEASURED_BATCH, CACHE_AT_ONCE // an_answer))
        for start in range(0, len(asked), batch):
            part = asked[start : start + batch]
            answers = self.sample(model, part, generator)
            questions = (readable(prompt.raw).strip() for prompt in part)
            yield answers.scores, [gold(*pair) for pair in zip(questions, answers.texts, strict=True)] if gold else []


def to_accelerator(*moved: PreTrainedModel) -> None:
    """Move models to the GPU if there is one, as the trainers do with theirs."""
    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    for model in moved:
        model.to(device)


@torch.no_grad()
def kl_and_nll(
    policy: PreTrainedModel, base: PreTrainedModel, answers: Answers, temperature: float
) -> tuple[list[list[float]], list[float]]:
    """How far each response is from the base model.

    Returns:
        KL(policy || base) in nats at each token of each response, exact over the vocabulary, at the sampling
        temperature (at 1 for greedy answers: between distributions of one token each it is zero or infinite); and
        minus the base's log-probability of each response at temperature 1.
    """
    temperature = temperature or 1.0
    kls: list[list[float]] = [[]] * len(answers.rows)
    nlls = [0.0] * len(answers.rows)
    for model in (policy, base):
        use_packed_attention(model)
    for part in batches_by_length(answers.rows, KL_BATCH_TOKENS, prompt_lengths=answers.prompt_lengths):
        prompt_lengths = [answers.prompt_lengths[i] for i in part]
        ids, rows, positions, targets = pack_responses([answers.rows[i] for i in part], prompt_lengths, base.device)
        # The trunks run once; only the projections to V logits are cut into chunks.
        size = max(1, LOGITS_AT_ONCE // base.get_output_embeddings().weight.size(0))
        states = (hidden_states(model, ids, rows, positions).split(size) for model in (policy, base))
        token_kls, token_nlls = [], []
        for of_policy, of_base, tokens in zip(*states, targets.split(size), strict=True):
            log_p = logits_at(policy, of_policy, temperature).log_softmax(dim=-1)
            log_q = logits_at(base, of_base, temperature).log_softmax(dim=-1)
            token_kls.append(torch.linalg.vecdot(log_p.exp(), log_p - log_q))
            plain = logits_at(base, of_base, 1.0).log_softmax(dim=-1)
            token_nlls.append(-plain.gather(1, tokens.unsqueeze(1)).squeeze(1))
        token_kl, token_nll = torch.cat(token_kls), torch.cat(token_nlls)
        lengths = [len(answers.rows[i]) - length for i, length in zip(part, prompt_lengths, strict=True)]
        for row, kl, nll in zip(part, token_kl.split(lengths), token_nll.split(lengths), strict=True):
            kls[row], nlls[row] = kl.tolist(), nll.sum().item()
    return kls, nlls


def compare(
    contenders: list[Contender],
    sampler: AnswerSampler,
    prompts: dict[str, list[str | Messages]],
    *,
    samples: int,
    seed: int,
    gold: GoldScorer | None = None,
    batch: int = BATCH,
    done: Collection[str] = (),
) -> Iterator[list[dict]]:
    """Let every contender, the first of which is the base, answer all prompts.

    Every contender has its own random numbers, so that a model compared with itself shows what chance alone does. The
    KL of best-of-n is at most log n - (n - 1) / n (Beirami et al. 2401.01879), and that is what its rows hold.

    Args:
        prompts: split -> its prompts.
        samples: answers per prompt.
        gold: a second scorer of (question, answer), where there is one.
        batch: answers sampled at once.
        done: names of contenders to leave out, whose answers are there already.

    Yields:
        rows of `scores.csv`, one batch of a contender's answers at a time, with what each reward gave where there are
        several; beside its columns they hold `token_kl`, the KL at each token of the response, which for best-of-n is
        unknown.
    """
    base = contenders[0].load()
    for number, contender in enumerate(contenders):
        if contender.name in done:
            continue
        model = contender.load() if number else base
        prompts_per_batch = max(1, batch // (samples * contender.best_of))
        for split_number, (split, of_split) in enumerate(prompts.items()):
            generator = torch.Generator().manual_seed((seed * 1000 + split_number) * 1000 + number)
            for start in range(0, len(of_split), prompts_per_batch):
                part = map(sampler.scorer.reader.read, of_split[start : start + prompts_per_batch])
                part = [prompt for prompt in part for _ in range(samples)]
                answers = sampler.best_of(contender.best_of, model, part, generator)
                kls, nlls = kl_and_nll(model, base, answers, sampler.temperature)
                bound = best_of_n_kl(contender.best_of) if contender.best_of > 1 else None
                yield [
                    {
                        "prompt": readable(prompt.raw).strip(),
                        "split": split,
                        "model": contender.name,
                        "sample": i % samples,
                        "response": answers.texts[i],
                        "score": answers.scores[i],
                        "gold": gold(readable(prompt.raw).strip(), answers.texts[i]) if gold else None,
                        "kl": sum(kls[i]) if bound is None else bound,
                        "token_kl": kls[i] if bound is None else None,
                        "tokens": len(answers.rows[i]) - answers.prompt_lengths[i],
                        "ended": answers.ended[i],
                        "base_nll": nlls[i],
                        **{reward_column(name): answers.by_reward[name][i] for name in sampler.scorer.parts},
                    }
                    for i, prompt in enumerate(part)
                ]
