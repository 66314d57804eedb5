"""The speed and memory of PPO here and in TRL 1.12, on the same machine and task; PPO's speed beside other programs;
and the speed of reward training and of the comparison.

The trainers take turns, round by round, because the load of a shared machine varies; results are medians, and ratios
are taken within a round. TRL runs in an environment of its own, made on first use, because the last release with a
PPOTrainer needs older libraries.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rlhf import threads
from rlhf.bench.measurement import LAST, PHASES
from rlhf.config import ASSETS, BadInput, BenchArguments, PPOArguments


REQUIREMENTS = ("trl==1.12.0", "transformers==5.23.0", "accelerate>=1.15,<2", "numpy>=2,<3")


def environment(folder: Path) -> Path:
    """The Python of an environment with TRL 1.12 in `folder`; made there on first use, which takes minutes."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        import torch

        print(f"Installing TRL 1.12.0 into {folder} (only once, takes minutes) ...", flush=True)  # noqa: T201
        venv.create(folder, with_pip=True, clear=True)
        # The same version of PyTorch as here, since the trainers are compared.
        torch_version = f"torch=={torch.__version__.split('+')[0]}"
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "-q", torch_version, *REQUIREMENTS],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["pip failed"]
            raise BadInput(f"TRL 1.12.0 could not be installed into {folder}: {last[0]}")
        (folder / "ready").touch()
    return python


def measure(python: str | Path, job: dict, environ: Mapping[str, str] = os.environ) -> dict:
    """Run a measurement in a process with these environment variables, and return its result."""
    root = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps({**job, "output_dir": str(Path(folder) / "out")}), encoding="utf-8")
        done = subprocess.run(
            [str(python), "-m", "rlhf.bench.measurement", str(path)],
            env={**environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise BadInput(f"The {job['trainer']} run failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def everyday_task(args: BenchArguments) -> dict:
    """Task: the embedded model, the example run's reward model, and PPO's prompts."""
    from rlhf import models
    from rlhf.data import load_prompts
    from rlhf.models.prompts import PromptReader

    _, tokenizer = models.load_policy(args.model_name_or_path)
    reader = PromptReader(tokenizer, room=None)
    reward = models.resolve(args.reward_model_path or str(ASSETS / "example"), "reward")
    return {
        "policy": models.resolve(args.model_name_or_path, "policy"),
        "reward": reward,
        "prompts": [reader.encode(prompt) for prompt in load_prompts(args.dataset_name, "ppo")],
        "stop_token": "eos",
    }


def random_gpt2_task(args: BenchArguments, folder: Path) -> dict:
    """Task: GPT-2 in full size with random weights, and random prompts of 64 tokens, for speed and memory only."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(args.seed)
    config = GPT2Config(pad_token_id=0, num_labels=1)
    words = {f"w{number}": number for number in range(config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")),
        pad_token="w0",
        eos_token=f"w{config.eos_token_id}",
    )
    for name, model in (("policy", GPT2LMHeadModel), ("reward", GPT2ForSequenceClassification)):
        model(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    prompts = torch.randint(1, config.vocab_size - 1, (4 * args.batch_size, 64)).tolist()
    return {"policy": str(folder / "policy"), "reward": str(folder / "reward"), "prompts": prompts, "stop_token": None}


def summarize(results: list[dict]) -> dict:
    """Medians over the updates of all rounds, without the first of each round, the warm-up."""
    updates = [update for result in results for update in result["updates"][1:]]
    batch = results[0]["batch_size"]
    medians = {
        "episodes_per_second": batch / statistics.median(update["total"] for update in updates),
        **{
            f"seconds_{phase}": statistics.median(update[f"seconds_{phase}"] for update in updates) for phase in PHASES
        },
        "peak_memory": statistics.median(result["peak_memory"] for result in results),
        "score": statistics.fmean(result["score"] for result in results),
        "kl_nats": statistics.fmean(result["kl"] for result in results),
    }
    if "update_share" in results[0]:
        medians["share_of_matmul_peak_in_update"] = statistics.median(result["update_share"] for result in results)
        medians["matmul_peak_gflops"] = statistics.median(result["matmul_peak"] for result in results) / 1e9
    return medians


def _job(args: BenchArguments, task: dict, trainer: str, seed: int) -> dict:
    names = ("batch_size", "micro_batch_size", "total_episodes", "num_ppo_epochs", "learning_rate", "response_length")
    return {
        **task,
        **{name: getattr(args, name) for name in names},
        "trainer": trainer,
        "temperature": PPOArguments.temperature,
        "kl_coef": 0.05,  # TRL's default; the command's is higher
        "seed": seed,
        "bf16": args.bf16,
        "use_cpu": args.use_cpu,
        "threads": args.threads,
        "stop_at_score": None,
        "busy": None,
        # Ours only: TRL keeps its defaults, 0.95 and 0.1. vf_coef is tuned for a value head on the policy's trunk.
        "ours": {"lam": PPOArguments.lam, **({"vf_coef": PPOArguments.vf_coef} if trainer == "ours" else {})},
    }


def _run(python: str | Path, job: dict) -> dict:
    """One measurement, with the totals that are reported."""
    result = measure(python, job)
    updates = result["updates"]
    seconds = sum(update["total"] for update in updates)
    score, kl = (statistics.fmean(update[name] for update in updates[-LAST:]) for name in ("score", "kl"))
    say(
        f"  {job['trainer']:<14} seed {job['seed']}: {len(updates) * job['batch_size']} episodes in {seconds:.1f} s, "
        f"score {score:.2f} at {kl:.1f} nats, peak memory {result['peak_memory'] / 1e6:.0f} MB"
    )
    settings = {name: job[name] for name in ("batch_size", "seed")}
    return {**result, **settings, "seconds": seconds, "score": score, "kl": kl}


def say(line: str) -> None:
    """Print a line without buffering."""
    print(line, flush=True)  # noqa: T201


def bench(args: BenchArguments) -> dict:
    """Measure our PPO, and with args.against TRL's too; prints and returns medians and ratios."""
    against = args.against == "trl"
    with tempfile.TemporaryDirectory() as folder:
        is_random = args.model_name_or_path == "random-gpt2"
        task = random_gpt2_task(args, Path(folder)) if is_random else everyday_task(args)
        trl = environment(Path(args.environment).expanduser()) if against else None
        contenders = [("ours", sys.executable), ("ours_separate", sys.executable)]
        contenders = [("trl", trl), *contenders] if against else contenders
        results: dict[str, list[dict]] = defaultdict(list)
        for turn in range(args.rounds):
            say(f"Round {turn + 1} of {args.rounds}")
            for name, python in (*contenders[turn % len(contenders) :], *contenders[: turn % len(contenders)]):
                results[name].append(_run(python, _job(args, task, name, args.seed + turn)))
            if against and not is_random:
                trls = results["trl"][-1]  # until its final score is reached
                job = {**_default_job(args, task, trls["seed"]), "stop_at_score": trls["score"]}
                # The command's defaults stop where a nat buys little; TRL's run goes for the score, and so does this.
                job |= {"learning_rate": 4e-4, "kl_coef": 0.05}
                job["ours"] |= {"advantage_estimator": "gae", "num_generations": 1, "num_mini_batches": 4}
                results["ours_for_score"].append(_run(sys.executable, job))
    report = {"machine": machine(), "settings": asdict(args), "medians": {}, "ratios": {}}
    for name, _ in contenders:
        report["medians"][name] = summarize(results[name])
    if against:
        report["ratios"] = ratios(results)
    report["rounds"] = results
    show(report)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def bench_compare(args: BenchArguments) -> dict:
    """Measure the speed-up of the comparison by batches over one prompt at a time; prints and returns it."""
    from rlhf import models
    from rlhf.compare import answers
    from rlhf.data import load_prompts
    from rlhf.models.prompts import PromptReader
    from rlhf.models.scoring import RewardScorer

    policy, tokenizer = models.load_policy(args.model_name_or_path)
    reward_model, its_tokenizer = models.load_reward_model(args.reward_model_path or str(ASSETS / "example"))
    answers.to_accelerator(policy, reward_model)
    reader = PromptReader(tokenizer, models.context_size(policy) - args.response_length)
    scorer = RewardScorer([reward_model], [its_tokenizer], [1.0], reader)
    sampler = answers.AnswerSampler(scorer, args.response_length, PPOArguments.temperature)
    prompts = {"test": load_prompts(args.dataset_name, "test")[: 2 * args.batch_size]}
    contenders = [answers.Contender("base", lambda: policy)]
    speeds: dict[int, list[float]] = {args.batch_size: [], 1: []}
    for turn in range(args.rounds):
        for batch, of_batch in speeds.items():
            began = time.perf_counter()
            rows = answers.compare(contenders, sampler, prompts, samples=1, seed=args.seed + turn, batch=batch)
            of_batch.append(sum(map(len, rows)) / (time.perf_counter() - began))
            say(f"Round {turn + 1} of {args.rounds}, {batch} at a time: {of_batch[-1]:.1f} responses per second")
    within_rounds = [fast / slow for fast, slow in zip(*speeds.values(), strict=True)]
    medians = {f"{batch}_at_a_time": statistics.median(of_batch) for batch, of_batch in speeds.items()}
    report = {
        "machine": machine(),
        "medians": medians,
        "ratios": {"responses_per_second": statistics.median(within_rounds)},
    }
    say(f"{report['machine']}\nratio responses_per_second {report['ratios']['responses_per_second']:.3g}")
    return report


def bench_reward(args: BenchArguments) -> dict:
    """Measure the speed-up of reward training over TRL's own trainer, in turns on `total_episodes` pairs."""
    import torch
    from trl import RewardTrainer

    from rlhf import models
    from rlhf.config import RewardArguments
    from rlhf.data import load_preferences
    from rlhf.models.prompts import PromptReader
    from rlhf.reward import PackedRewardTrainer, tokenized, train_reward_model

    if args.threads:
        torch.set_num_threads(args.threads)
    train, _ = load_preferences(args.dataset_name)
    _, tokenizer = models.load_reward_model(args.model_name_or_path)
    train = train.select(range(min(args.total_episodes, len(train))))
    pairs = tokenized(train, PromptReader(tokenizer, None), RewardArguments.max_length)
    speeds: dict[type, list[float]] = {RewardTrainer: [], PackedRewardTrainer: []}
    for turn in range(args.rounds):
        settings = RewardArguments(seed=args.seed + turn, eval_steps=10**6, logging_steps=10**6)
        for trainer_class, of_trainer in speeds.items():
            model, _ = models.load_reward_model(args.model_name_or_path)
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                train_reward_model(
                    model, tokenizer, settings, pairs, pairs, Path(folder), [], trainer_class=trainer_class
                )
                of_trainer.append(len(pairs) / (time.perf_counter() - began))
            say(f"Round {turn + 1} of {args.rounds}, {trainer_class.__name__}: {of_trainer[-1]:.1f} pairs per second")
    medians = {of.__name__: statistics.median(of_trainer) for of, of_trainer in speeds.items()}
    ratio = statistics.median(ours / theirs for theirs, ours in zip(*speeds.values(), strict=True))
    report = {"machine": machine(), "medians": medians, "ratios": {"pairs_per_second": ratio}}
    say(f"{report['machine']}\nratio pairs_per_second {ratio:.3g}")
    return report


def bench_busy(args: BenchArguments) -> dict:
    """Measure PPO by itself and beside busy loops, with threads that wait as here and as in PyTorch by default."""
    task = everyday_task(args)
    by_default = {name: value for name, value in os.environ.items() if name not in threads.VARIABLES}
    contenders = [("shipped", os.environ), ("spinning", by_default)]
    loops = [0, *args.busy]
    rounds: dict[str, list[list[float]]] = defaultdict(list)
    say(f"{'episodes per second beside':<28}" + "".join(f"{f'{count} loops':>16}" for count in loops))
    for turn in range(args.rounds):
        for name, environ in contenders[:: -1 if turn % 2 else 1]:
            job = _default_job(args, task, args.seed + turn)
            # Without learning the answers keep their length, so that the loops alone change the speed.
            job |= {"busy": loops, "seconds": args.seconds, "learning_rate": 0.0, "total_episodes": 10**6}
            rounds[name].append(measure(sys.executable, job, environ)["speeds"])
            say(f"{f'round {turn + 1}, {name}':<28}" + "".join(f"{speed:>16.1f}" for speed in rounds[name][-1]))
    medians = {name: list(map(statistics.median, zip(*speeds, strict=True))) for name, speeds in rounds.items()}
    for name, speeds in medians.items():
        cells = "".join(f"{f'{speed:.1f} ({speed / speeds[0]:.0%})':>16}" for speed in speeds)
        say(f"{f'median, {name}':<28}{cells}")
    environment = {name: os.environ[name] for name in sorted(threads.VARIABLES & os.environ.keys())}
    report = {"machine": machine(), "environment": environment, "loops": loops, "medians": medians, "rounds": rounds}
    say(f"{report['machine']}; shipped: {environment}")
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def _default_job(args: BenchArguments, task: dict, seed: int) -> dict:
    """The default settings of `ppo`, on these prompts and lengths."""
    job = _job(args, task, "ours", seed)
    job |= {"total_episodes": PPOArguments.total_episodes, "num_ppo_epochs": PPOArguments.num_ppo_epochs}
    job |= {"learning_rate": PPOArguments.learning_rate, "kl_coef": PPOArguments.kl_coef}
    names = ("num_mini_batches", "vf_coef", "lam", "reward_normalization", "missing_eos_penalty")
    names += ("advantage_estimator", "num_generations")
    job["ours"] = {name: getattr(PPOArguments, name) for name in names}
    return job


def ratios(results: dict[str, list[dict]]) -> dict[str, float]:
    """Ours over TRL's: medians over rounds of the ratios within a round."""
    medians = {}

    def within(name: str, ours: str, key: str) -> None:
        pairs = zip(results[ours], results["trl"], strict=True)
        medians[name] = statistics.median(summarize([one])[key] / summarize([other])[key] for one, other in pairs)

    within("episodes_per_second", "ours", "episodes_per_second")
    within("episodes_per_second_separate_value_model", "ours_separate", "episodes_per_second")
    for phase in PHASES:
        within(f"seconds_{phase}", "ours", f"seconds_{phase}")
    within("peak_memory", "ours", "peak_memory")
    within("peak_memory_separate_value_model", "ours_separate", "peak_memory")
    within("score", "ours", "score")
    within("score_separate_value_model", "ours_separate", "score")
    if results["ours_for_score"]:
        pairs = zip(results["ours_for_score"], results["trl"], strict=True)
        medians["seconds_to_trls_score"] = statistics.median(one["seconds"] / other["seconds"] for one, other in pairs)
    return medians


def machine() -> str:
    """Name of the GPU, or of the CPU with its number of cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


def show(report: dict) -> None:
    """Print the medians as a table, then the ratios."""
    say(f"\n{report['machine']}")
    names = list(report["medians"])
    say(f"{'median':<34}" + "".join(f"{name:>16}" for name in names))
    for key in report["medians"]["ours"]:
        cells = []
        for name in names:
            value = report["medians"][name].get(key)
            value = value / 1e6 if key == "peak_memory" and value is not None else value
            cells.append(f"{'':>16}" if value is None else f"{value:>16.3f}")
        say(f"{key + (' (MB)' if key == 'peak_memory' else ''):<34}" + "".join(cells))
    for name, value in report["ratios"].items():
        say(f"ratio {name} {value:.3g}")
