"""One way to score a response with a reward model, for its training, for PPO, for the comparison and for the page.

The reward model reads the very ids the policy read and wrote: prompt, response and the end token if it was said. The
score is taken at the last of them, found by length and never by looking for a pad token's value.
"""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.generate import batches_by_length, pad_right


@torch.no_grad()
def score_ids(reward_model: PreTrainedModel, rows: list[list[int]], batch_tokens: int = 8192) -> torch.Tensor:
    """Score whole sequences (prompt + response), a list of B id lists -> (B,).

    Rows are batched with others of their length, `batch_tokens` padded tokens at a time.
    """
    trunk, head = reward_model.base_model, reward_model.score
    scores = torch.empty(len(rows))
    for chosen in batches_by_length(rows, batch_tokens):
        # Right padding under causal attention: no token sees a pad, so no mask is needed.
        ids = pad_right([rows[row] for row in chosen]).to(reward_model.device)
        hidden = trunk(input_ids=ids, use_cache=False).last_hidden_state
        last = torch.tensor([len(rows[row]) - 1 for row in chosen], device=hidden.device)
        pooled = hidden[torch.arange(len(chosen), device=hidden.device), last]
        scores[chosen] = head(pooled).squeeze(1).float().cpu()
    return scores


def score_texts(
    reward_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], responses: list[str]
) -> list[float]:
    """Scores of finished responses given as text; the end token is added as in the reward model's training."""
    texts = [prompt + response + tokenizer.eos_token for prompt, response in zip(prompts, responses, strict=True)]
    return score_ids(reward_model, tokenizer(texts)["input_ids"]).tolist()
