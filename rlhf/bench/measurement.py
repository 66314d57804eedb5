"""One measurement of the speed and memory of PPO, here or in TRL 1.12, in a process of its own.

`python -m rlhf.bench.measurement JOB` reads the job from a JSON file, and prints the result as one line of JSON. TRL's
environment runs this file too, so it imports only what that has.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rlhf import metrics


PHASES = ("rollout", "score", "update")
LAST = 10
"""Updates over which the final score is averaged: a single batch of 64 is noisy."""
SPIN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
"""A busy loop, which ends with the process that started it."""


class Stopwatch:
    """Seconds per phase of each update."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.updates: list[dict[str, float]] = []
        self.phases: dict[str, float] = {}
        self.last = self.began = self.now()

    def now(self) -> float:
        """The time once the GPU has finished its work."""
        if self.cuda:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def stamp(self, phase: str) -> None:
        """End a phase."""
        now = self.now()
        self.phases[f"seconds_{phase}"] = now - self.last
        self.last = now

    def end_update(self, **also: float) -> None:
        """End an update; time since its last phase counts for its total only."""
        now = self.now()
        self.updates.append({**self.phases, "total": now - self.began, **also})
        self.phases, self.began, self.last = {}, now, now


def _stopping_callback(watch: Stopwatch, job: dict, score_key: str) -> object:
    """A Transformers callback that ends updates on the stopwatch, and the training at job["stop_at_score"]."""
    from transformers import TrainerCallback

    class EndOfUpdate(TrainerCallback):
        def on_train_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
            watch.began = watch.last = watch.now()

        def on_log(self, args: object, state: object, control: object, logs: dict, **kwargs: object) -> None:
            if score_key in logs:
                watch.updates[-1] |= {"score": logs[score_key], "kl": logs[metrics.KL]}
                watch.updates[-1]["read_tokens"] = logs.get("tokens_per_second/score", 0) * logs.get("time/score", 0)
                watch.updates[-1]["said_tokens"] = logs.get(metrics.MEAN_LENGTH, 0) * job["batch_size"]
                scores = [update["score"] for update in watch.updates[-LAST:]]
                goal = job["stop_at_score"]
                if goal is not None and len(scores) == LAST and statistics.fmean(scores) >= goal:
                    control.should_training_stop = True

        def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
            if job["trainer"] != "trl":  # TRL logs before its step ends; there the log ends the update
                watch.end_update()

    return EndOfUpdate()


def _crowding_callback(job: dict) -> object:
    """A Transformers callback that measures the speed beside each number of busy loops in job["busy"], then ends."""
    from transformers import TrainerCallback

    class Crowd(TrainerCallback):
        def __init__(self) -> None:
            self.to_come = list(job["busy"])
            self.loops: list[subprocess.Popen] = []
            self.episodes, self.began = 0, -float("inf")
            self.speeds: list[float] = []

        def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
            self.episodes += job["batch_size"]
            now = time.perf_counter()
            if now - self.began < job["seconds"]:
                return
            if state.global_step > 1:  # the first update is the warm-up
                self.speeds.append(self.episodes / (now - self.began))
            self.end()
            if self.to_come:
                command = [sys.executable, "-c", SPIN, str(os.getpid())]
                self.loops = [subprocess.Popen(command) for _ in range(self.to_come.pop(0))]
                self.episodes, self.began = 0, time.perf_counter()
            else:
                control.should_training_stop = True

        def end(self) -> None:
            for loop in self.loops:
                loop.kill()
                loop.wait()

    return Crowd()


def _models(job: dict) -> tuple:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["policy"], padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32)
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
        for path in (job["reward"], job["reward"])
    )
    return tokenizer, policy, reward, value


def _shared_settings(job: dict) -> dict:
    """Settings that TRL's config and ours share."""
    return {
        "output_dir": job["output_dir"],
        "per_device_train_batch_size": job["micro_batch_size"],
        "gradient_accumulation_steps": job["batch_size"] // job["micro_batch_size"],
        "total_episodes": job["total_episodes"],
        "num_ppo_epochs": job["num_ppo_epochs"],
        "learning_rate": job["learning_rate"],
        "response_length": job["response_length"],
        "temperature": job["temperature"],
        "kl_coef": job["kl_coef"],
        "stop_token": job["stop_token"],
        "adam_epsilon": 1e-5,
        "seed": job["seed"],
        "bf16": job["bf16"],
        "gradient_checkpointing": False,
        "use_cpu": job["use_cpu"],
        "num_sample_generations": 0,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def _train_ours(job: dict, watch: Stopwatch) -> dict:
    from transformers.trainer_callback import PrinterCallback

    from rlhf.ppo import PPOConfig, PPOTrainer

    tokenizer, policy, reward, value = _models(job)
    trainer = PPOTrainer(
        policy,
        PPOConfig(**_shared_settings(job), **job["ours"]),
        tokenizer,
        reward_model=reward,
        value_model=value if job["trainer"] == "ours_separate" else None,
        train_dataset=[{"input_ids": ids} for ids in job["prompts"]],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_stopping_callback(watch, job, metrics.SCORE))
    if job["busy"]:
        crowd = _crowding_callback(job)
        trainer.add_callback(crowd)
        trainer.train()
        return {"speeds": crowd.speeds}
    peak = matmul_peak(policy.device, bf16=job["bf16"]) if job["trainer"] == "ours" else None
    trainer.train()
    for update, line in zip(watch.updates, trainer.state.log_history, strict=True):
        update |= {f"seconds_{phase}": line[f"time/{phase}"] for phase in PHASES}
    return {} if peak is None else {"matmul_peak": peak, "update_share": update_share(policy, job, watch, peak)}


def _train_trl(job: dict, watch: Stopwatch) -> dict:
    """TRL 1.12, whose phases are timed at calls of its module's functions."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    def end_phase_after(name: str, phase: str) -> None:
        function = getattr(ppo_trainer, name)

        def call(*args: object, **kwargs: object) -> object:
            result = function(*args, **kwargs)
            watch.stamp(phase)
            return result

        setattr(ppo_trainer, name, call)

    end_phase_after("batch_generation", "rollout")
    end_phase_after("masked_whiten", "score")  # the last thing before the epochs
    tokenizer, policy, reward, value = _models(job)
    prompts = Dataset.from_list([{"input_ids": ids} for ids in job["prompts"]])
    trainer = PPOTrainer(
        args=PPOConfig(**_shared_settings(job)),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=prompts,
        eval_dataset=prompts.select(range(8)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_stopping_callback(watch, job, "objective/scores"))
    log = trainer.log

    def log_after_end(logs: dict, *args: object) -> None:
        watch.stamp("update")
        watch.end_update()
        log(logs, *args)

    trainer.log = log_after_end
    trainer.train()
    return {}


def matmul_peak(device: object, *, bf16: bool) -> float:
    """Floating-point operations per second of a product of two large matrices, the best of eight."""
    import torch

    size = 2048 if device.type == "cpu" else 8192
    dtype = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def update_share(policy: object, job: dict, watch: Stopwatch, peak: float) -> float:
    """Share of the matrix-product peak that the update phase reached, median over updates.

    Counted are the products with weights: the trunk reads every token, its last MLP and the output projection every
    response token; forward (2 operations per weight and token) and backward (4), in every epoch. Attention's own
    products are left out.
    """
    head = policy.get_output_embeddings().weight.numel()
    embeddings = {id(policy.get_input_embeddings().weight), id(policy.get_output_embeddings().weight)}
    trunk = {
        name: weight.numel()
        for name, weight in policy.named_parameters()
        if weight.ndim == 2 and id(weight) not in embeddings and "wpe" not in name
    }
    last_layer = [name.split(".mlp.")[0] for name in trunk if ".mlp." in name][-1]
    last_mlp = sum(size for name, size in trunk.items() if name.startswith(f"{last_layer}.mlp."))
    whole = sum(trunk.values()) - last_mlp
    shares = []
    for update in watch.updates[1:]:
        read = update["read_tokens"] - job["batch_size"]  # no row's last token is read
        products = whole * read + (last_mlp + head) * update["said_tokens"]
        shares.append(6 * job["num_ppo_epochs"] * products / update["seconds_update"] / peak)
    return statistics.median(shares)


def work(job: dict) -> dict:
    """Do one measurement in this process."""
    import torch

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    cuda = torch.cuda.is_available() and not job["use_cpu"]
    watch = Stopwatch(cuda)
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results = (_train_trl if job["trainer"] == "trl" else _train_ours)(job, watch)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"updates": watch.updates, "peak_memory": peak, "memory_before": idle, **results}


if __name__ == "__main__":
    print(json.dumps(work(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))), flush=True)  # noqa: T201
