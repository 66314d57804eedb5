"""Models on the same unseen prompts: their answers, scored by one function, with the exact KL from the base model.

Everything goes a batch of prompts at a time and is handed on at once, so memory does not grow with the prompts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rlhf.compare.stats import best_of_n_kl
from rlhf.models.generate import generate
from rlhf.models.packed import batches_by_length, hidden_states, logits_at, pack_responses, use_packed_attention
from rlhf.models.prompts import Messages, Prompt, readable
from rlhf.models.scoring import RewardModel


BATCH = 64
"""Answers that are sampled at once."""
READ_AT_ONCE = 1536
"""Tokens whose distributions are in memory at once."""
GoldScorer = Callable[[str, str], float]


@dataclass
class Contender:
    """A model under the name that the comparison calls it by."""

    name: str
    load: Callable[[], PreTrainedModel]
    """Gives the model; called when its turn comes, so that one model beside the base is in memory at a time."""
    best_of: int = 1
    """Answers of which the one that the reward model likes best is taken: the baseline that needs no training."""


@dataclass
class Answers:
    """One model's responses to some prompts."""

    rows: list[list[int]]
    """Prompt and response ids, without pads."""
    prompt_lengths: list[int]
    texts: list[str]
    ended: list[bool]
    scores: list[float]

    def take(self, chosen: Sequence[int]) -> "Answers":
        """Some of them."""
        columns = (self.rows, self.prompt_lengths, self.texts, self.ended, self.scores)
        return Answers(*([column[i] for i in chosen] for column in columns))


@dataclass
class Judge:
    """How answers are sampled and scored: the same for every model."""

    reward_model: RewardModel
    response_length: int
    temperature: float

    def answers(self, model: PreTrainedModel, prompts: list[Prompt], generator: torch.Generator) -> Answers:
        """One scored answer of a model to each of B prompts."""
        tokenizer = self.reward_model.reader.tokenizer
        queries = [prompt.ids for prompt in prompts]
        generation = generate(
            model,
            queries,
            max_new_tokens=self.response_length,
            temperature=self.temperature,
            eos_id=tokenizer.eos_token_id,
            generator=generator,
        )
        said, ended = generation.lists(), generation.ended.tolist()
        return Answers(
            rows=[query + response for query, response in zip(queries, said, strict=True)],
            prompt_lengths=list(map(len, queries)),
            texts=[text.strip() for text in tokenizer.batch_decode(said, skip_special_tokens=True)],
            ended=ended,
            scores=self.reward_model(prompts, said, ended).tolist(),
        )

    def best_of(
        self, count: int, model: PreTrainedModel, prompts: list[Prompt], generator: torch.Generator
    ) -> Answers:
        """The best by score of `count` answers of a model to each of B prompts."""
        tries = self.answers(model, [prompt for prompt in prompts for _ in range(count)], generator)
        of_prompt = torch.tensor(tries.scores).view(-1, count).argmax(dim=1)
        return tries.take([start * count + best for start, best in enumerate(of_prompt.tolist())])


@torch.no_grad()
def distances(
    policy: PreTrainedModel, base: PreTrainedModel, answers: Answers, temperature: float
) -> tuple[list[float], list[float]]:
    """Of each response: KL(policy || base) at the sampling temperature, the base's -log p at temperature 1; in nats.

    The KL is exact over the vocabulary at each token, and summed over the tokens of the response.
    """
    kls, nlls = ([0.0] * len(answers.rows) for _ in range(2))
    for model in (policy, base):
        use_packed_attention(model)
    for part in batches_by_length(answers.rows, READ_AT_ONCE):
        prompt_lengths = [answers.prompt_lengths[i] for i in part]
        ids, rows, positions, targets = pack_responses([answers.rows[i] for i in part], prompt_lengths, base.device)
        of_base = hidden_states(base, ids, rows, positions)
        log_p = logits_at(policy, hidden_states(policy, ids, rows, positions), temperature).log_softmax(dim=-1)
        log_q = logits_at(base, of_base, temperature).log_softmax(dim=-1)
        token_kl = torch.linalg.vecdot(log_p.exp(), log_p - log_q)
        plain = logits_at(base, of_base, 1.0).log_softmax(dim=-1)
        token_nll = -plain.gather(1, targets.unsqueeze(1)).squeeze(1)
        lengths = [len(answers.rows[i]) - length for i, length in zip(part, prompt_lengths, strict=True)]
        for row, kl, nll in zip(part, token_kl.split(lengths), token_nll.split(lengths), strict=True):
            kls[row], nlls[row] = kl.sum().item(), nll.sum().item()
    return kls, nlls


def compare(
    contenders: list[Contender],
    judge: Judge,
    prompts: dict[str, list[str | Messages]],
    *,
    samples: int,
    seed: int,
    gold: GoldScorer | None = None,
    batch: int = BATCH,
) -> Iterator[list[dict]]:
    """Rows of `scores.csv`, one model's answers to some prompts at a time; the first contender is the base.

    Every model draws random numbers of its own, so that a model against itself shows what luck alone does. Best-of-n
    counts as log n - (n - 1) / n nats from the base.
    """
    base = contenders[0].load()
    for number, contender in enumerate(contenders):
        model = contender.load() if number else base
        at_once = max(1, batch // (samples * contender.best_of))
        for split_number, (split, asked) in enumerate(prompts.items()):
            generator = torch.Generator().manual_seed((seed * 1000 + split_number) * 1000 + number)
            for start in range(0, len(asked), at_once):
                read_once = map(judge.reward_model.reader.read, asked[start : start + at_once])
                part = [prompt for prompt in read_once for _ in range(samples)]
                answers = judge.best_of(contender.best_of, model, part, generator)
                kls, nlls = distances(model, base, answers, judge.temperature)
                if contender.best_of > 1:
                    kls = [best_of_n_kl(contender.best_of)] * len(kls)
                yield [
                    {
                        "prompt": readable(prompt.given).strip(),
                        "split": split,
                        "model": contender.name,
                        "sample": place % samples,
                        "response": answers.texts[place],
                        "score": answers.scores[place],
                        "gold": gold(readable(prompt.given).strip(), answers.texts[place]) if gold else None,
                        "kl": kls[place],
                        "tokens": len(answers.rows[place]) - answers.prompt_lengths[place],
                        "ended": answers.ended[place],
                        "base_nll": nlls[place],
                    }
                    for place, prompt in enumerate(part)
                ]
