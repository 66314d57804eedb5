"""What `test_ranks.py` runs under a launcher, several pieces of work in one start.

ranks_script.py commands FILE        commands of the program, a list of their words for each
ranks_script.py world FOLDER ROWS RANKS PORT    PPO in a small world with so many responses an update from each
                                     process, numbers to a file; forks into so many, which load the libraries once
"""

import json
import os
import sys
from pathlib import Path

from worlds import small_gpt2, trainer_for

from rlhf import ranks
from rlhf.__main__ import exit_code, parser, run_command


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


def run_all(commands: list[list[str]]) -> None:
    """Run these commands, one after another."""
    for words in commands:
        given = vars(parser().parse_args(words))
        run_command(given.pop("command"), given)


if __name__ == "__main__":
    what, path, *numbers = sys.argv[1:]
    if what == "commands":
        code = exit_code(run_all, json.loads(Path(path).read_text()))
        sys.stderr.flush()
        os._exit(code)  # as `python -m rlhf` ends with several processes
    rows, size, port = map(int, numbers)
    rank = next((rank for rank in range(1, size) if os.fork() == 0), 0)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = {name: run(Path(path), rows, name) for name in SETTINGS}
    if ranks.is_main_process():
        Path(path, f"{ranks.world_size()}.json").write_text(json.dumps(found))
