"""What `test_ranks.py` runs under a launcher and in its own process: PPO in a small world, numbers to a file.

ranks_script.py FOLDER ROWS    with so many responses an update from each process
"""

import json
import sys
from pathlib import Path

from worlds import small_gpt2, trainer_for

from rlhf import ranks


SETTINGS = {
    "plain": {"num_mini_batches": 2, "num_ppo_epochs": 2, "num_generations": 2},
    "careful": {
        "value_head": "separate",
        "reward_normalization": "running",
        "reward_clip_range": 1.0,
        "missing_eos_penalty": 0.5,
        "mask_truncated_completions": True,
        "kl_controller": "adaptive",
        "early_stopping": True,
        "target_kl": 1e-4,
        "num_ppo_epochs": 3,
        "entropy_coef": 0.01,
    },
}
"""Of mini-batches of two responses, three ranks share: one of them at least has none to read."""


def count_sevens(prompts, completions, completion_ids, log_metric):
    """The share of one token, with a metric of its own; no opinion on empty talk."""
    log_metric("sevens/longest", sum(map(len, completion_ids)) / len(completion_ids))
    return [ids.count(7) / len(ids) if len(ids) > 1 else None for ids in completion_ids]


def run(folder: Path, rows: int, name: str) -> dict:
    """One short run: its log, and an evaluation of five prompts in two batches."""
    model = small_gpt2(12, n_positions=12, scale=0.05)  # undecided: a good part of the answers ends
    prompts = ["<bos>", "<bos> t3", "<bos> t4 t5", "t6", "t7 t8"]
    trainer = trainer_for(
        model,
        None,
        folder / name,
        reward_funcs=count_sevens,
        train_dataset=prompts,
        eval_dataset=[*prompts, *prompts[:3]],
        per_device_train_batch_size=rows,
        total_episodes=18,
        response_length=8,
        save_strategy="no",
        **SETTINGS[name],
    )
    trainer.train()
    found = trainer.evaluate()
    return {"log": trainer.state.log_history, "eval": found}


if __name__ == "__main__":
    folder, rows = Path(sys.argv[1]), int(sys.argv[2])
    found = {name: run(folder, rows, name) for name in SETTINGS}
    if ranks.is_main_process():
        (folder / f"{ranks.world_size()}.json").write_text(json.dumps(found))
