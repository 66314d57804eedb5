"""What a page allows that others use: which models, how much work, whose run it is. A Hugging Face Space is one.

On a person's own computer everything is allowed; in a classroom, on names and paths, what a Space allows and what lies
in the teacher's folder `RLHF_DATA`. The limits are checked where a run is started and stopped
(`jobs.py`), not where the form is drawn, so that a request from elsewhere meets them too.
"""

import hashlib
import os
from pathlib import Path

from rlhf.config import EVERYDAY, UPLOADED, BadInput
from rlhf.launch import classroom
from rlhf.rewards import RewardName
from rlhf.runs.directory import EXAMPLE, list_runs


ALLOWED_MODELS = {
    EVERYDAY: 128,
    "openai-community/gpt2": 1024,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 8192,
}
"""Models that a page for others loads, and how many tokens each can read."""
ALLOWED_DATASETS = (EVERYDAY, "trl-lib/ultrafeedback_binarized")
"""Data that it loads."""
NOT_OFFERED = ("output_dir", "prompts_file", "save_steps", "resume_from_checkpoint", "report_to")
"""Settings with paths of a person's own, that fill the disk, or that send numbers elsewhere."""
_TURNS, _MEMORY = "so that others get their turn", "so that it fits into memory"
CAPS = {
    "total_episodes": (20_480, _TURNS),
    "num_train_epochs": (5, _TURNS),
    "max_steps": (2_000, _TURNS),
    "reward_max_steps": (2_000, _TURNS),
    "num_ppo_epochs": (8, _TURNS),
    "num_generations": (64, _TURNS),
    "num_prompts": (512, _TURNS),
    "samples": (8, _TURNS),
    "seeds": (4, _TURNS),
    "checkpoints": (8, _TURNS),
    "num_sample_generations": (20, _TURNS),
    "gradient_accumulation_steps": (8, _TURNS),
    "per_device_train_batch_size": (128, _MEMORY),
    "per_device_eval_batch_size": (256, _MEMORY),
    "reward_batch_size": (128, _MEMORY),
    "max_prompt_length": (512, _MEMORY),
    "lora_r": (64, _MEMORY),
}
"""The most that a Space does in one run, and why."""
MOST_ENTRIES = 8
"""Of a setting that is a list: models, kl_coef values, baselines."""
MOST_WAITING = 3
"""Runs that wait for their turn on a Space."""
LONGEST_RUN = 3600.0
"""Seconds after which a Space asks a run to save and end."""
SAVING = 20
"""Seconds before the end of a ZeroGPU call in which a run saves what it has learned."""
UPLOAD_ON_SPACE, UPLOAD = 2_000_000, 20_000_000
"""Bytes of a file that a person uploads, on a Space and elsewhere."""
UPLOADS = 50
"""Times as many bytes all uploads of an hour may have together; after that they are cleared."""
UNPACKED = 10
"""Times as many bytes as it may have once it is unpacked: a small file can hold gigabytes of zeros."""
MOST_BYTES = 2_000_000_000
"""What all runs of a Space may take up together, before the oldest give up their models."""


def on_space() -> bool:
    """Whether this is a Hugging Face Space."""
    return bool(os.environ.get("SPACE_ID"))


def on_zero_gpu() -> bool:
    """Whether this Space has a GPU only within calls, which Hugging Face shares out (ZeroGPU)."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def gpu_seconds() -> int:
    """How long a ZeroGPU call may take, which is a whole run.

    Raises:
        BadInput: `RLHF_GPU_SECONDS` is no number, or leaves no time beside that for saving.
    """
    seconds = os.environ.get("RLHF_GPU_SECONDS") or "120"
    if not seconds.isdecimal() or int(seconds) <= SAVING:
        raise BadInput(f"RLHF_GPU_SECONDS must be a whole number of seconds, more than {SAVING}, not {seconds!r}.")
    return int(seconds)


def longest_run() -> float | None:
    """Seconds after which a run is asked to save and end; None on a person's own computer."""
    if on_zero_gpu():
        return gpu_seconds() - SAVING
    return LONGEST_RUN if on_space() else None


def shared() -> bool:
    """Whether the page is served to other computers: on a Space, or in a classroom."""
    return on_space() or bool(os.environ.get("GRADIO_SERVER_NAME")) or classroom.is_on()


def cores() -> int:
    """CPU cores that are ours: a Space counts its own in `CPU_CORES`, the operating system all of the machine's."""
    return max(1, int(float(os.environ.get("CPU_CORES") or os.cpu_count() or 1)))


def models() -> list[str]:
    """Models that a page for others loads."""
    return [*ALLOWED_MODELS, *filter(_is_model, _given())]


def datasets() -> list[str]:
    """Data that a page for others loads."""
    return [*ALLOWED_DATASETS, *(path for path in _given() if not _is_model(path))]


def _given() -> list[str]:
    """What lies in the folder that a teacher allows, the environment's `RLHF_DATA`."""
    folder = Path(os.environ.get("RLHF_DATA", "")).expanduser().resolve()
    offered = bool(os.environ.get("RLHF_DATA")) and not on_space() and folder.is_dir()
    return sorted(str(path) for path in folder.iterdir() if path.name[0] != ".") if offered else []


def _is_model(path: str) -> bool:
    return path.lower().endswith(".gguf") or any(Path(path, name).exists() for name in ("config.json", "status.json"))


def check(settings: dict[str, object]) -> None:
    """Check a run's settings, all or some of them by name, against what a page for others allows.

    Raises:
        BadInput: another model, other data, a path, code, or more work than there is room for.
    """
    if shared() and any(RewardName.read(name).file for name in settings.get("reward_funcs") or ()):
        raise BadInput(
            "Reward functions of a file are not offered on a page that others use too; run the program yourself, or "
            "take built-in ones.",
            field="reward_funcs",
        )
    if shared():
        _check_names(settings)
    if on_space():
        _check_amounts(settings, str(settings.get("model_name_or_path", EVERYDAY)))


def _check_names(settings: dict[str, object]) -> None:
    here, known = "Space" if on_space() else "page", models()
    if not all(settings.get(name, EVERYDAY) in known for name in ("model_name_or_path", "base_model_name_or_path")):
        raise BadInput(
            f"This {here} trains {_either(known)}; run the program yourself for other models.",
            field="model_name_or_path",
        )
    data = str(settings.get("dataset_name", EVERYDAY))
    if data not in datasets() and not _of_compared_run(data, settings):
        raise BadInput(
            f"This {here} trains on {_either(datasets())}; run the program yourself for other data.",
            field="dataset_name",
        )
    folders = [EXAMPLE, *(run.path for run in list_runs())]
    for path in trained_models(settings):
        if not any(map(path.is_relative_to, folders)) and str(path) not in known:
            raise BadInput(f"A trained model must be a run of this {here}; choose one from the list.")
    for name in NOT_OFFERED:
        if settings.get(name):
            raise BadInput(f"{name} is not offered on this {here}; run the program yourself to set it.", field=name)


def _of_compared_run(data: str, settings: dict[str, object]) -> bool:
    """Whether the data are what was uploaded for a run that these settings compare with its base."""
    compared = [Path(entry.partition("=")[2]).resolve() for entry in settings.get("models") or ()]
    return any(Path(data).resolve().is_relative_to(run / UPLOADED) for run in compared)


def most_upload() -> int:
    """Bytes of the largest file that a person may upload."""
    return UPLOAD_ON_SPACE if on_space() else UPLOAD


def check_upload(file: Path) -> None:
    """Check that an uploaded file is a table of a kind that is read, and not too large, also once it is unpacked.

    Raises:
        BadInput: it is not, or uploads are locked.
    """
    classroom.check("uploads")
    from rlhf.data.reader import KINDS, kind_of, unpacked_size  # loads Datasets, which takes seconds

    if not kind_of(file):
        raise BadInput(
            f"{file.name} cannot be read: give a file ending in {', '.join(KINDS)} (or .gz of these); a spreadsheet "
            "program saves a table as CSV.",
            field="dataset_name",
        )
    most = most_upload()
    if file.stat().st_size > most or unpacked_size(file, UNPACKED * most) > UNPACKED * most:
        raise BadInput(
            f"{file.name} is too large: at most {most // 1_000_000} MB, and {UNPACKED * most // 1_000_000} MB once it "
            "is unpacked; leave some rows out.",
            field="dataset_name",
        )


def _check_amounts(settings: dict[str, object], model: str) -> None:
    for name, value in settings.items():
        if isinstance(value, list) and len(value) > MOST_ENTRIES:
            raise BadInput(
                f"{name} has at most {MOST_ENTRIES} entries on this Space, {_TURNS}; leave some out.", field=name
            )
    context = ALLOWED_MODELS[model]
    room = f"so that a prompt fits beside it into {model}'s {context} tokens"
    lengths = {"response_length": (min(128, context // 2), room), "max_length": (min(512, context), _MEMORY)}
    for name, (most, why) in (CAPS | lengths).items():
        if (settings.get(name) or 0) > most:
            raise BadInput(
                f"{name} is at most {most:,} on this Space, {why}; run the program yourself for more.", field=name
            )


def trained_models(settings: dict[str, object]) -> list[Path]:
    """Folders of the reward model and of the policies that a run would load, beside the model it starts from."""
    named = [entry.partition("=")[2] for entry in settings.get("models") or ()]
    return [Path(path).resolve() for path in (settings.get("reward_model_path"), *named) if path]


def _either(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def check_queue(waiting: list[dict], visitor: str) -> None:
    """Check that a visitor may add a run to those that wait, by their statuses: on a shared page one each.

    Raises:
        BadInput: theirs is among them, or a Space has too many.
    """
    if shared() and not classroom.is_teacher() and any(may_stop(status, visitor) for status in waiting):
        raise BadInput("A run of yours waits already; choose it at the top, and Stop takes it out of the queue.")
    if on_space() and len(waiting) >= MOST_WAITING:
        raise BadInput(f"{MOST_WAITING} runs wait already, which is all this Space has room for; try again later.")


def mark(visitor: str) -> str:
    """What a run notes of who started it: nobody can read the visitor's secret from it."""
    return hashlib.sha256(str(visitor).encode(errors="surrogatepass")).hexdigest()[:32] if visitor else ""


def may_stop(status: dict, visitor: str) -> bool:
    """Whether this visitor may stop, resume, rename or delete a run, by its status.

    On a shared page who started it may, and a class's teacher.
    """
    return not shared() or classroom.is_teacher() or bool(visitor) and status.get("owner") == mark(visitor)


def check_owner(status: dict, visitor: str) -> None:
    """Check that a run is this visitor's, see `may_stop`.

    Raises:
        BadInput: somebody else started it.
    """
    if not may_stop(status, visitor):
        raise BadInput("Only the browser that started this run can stop, resume, rename or delete it.")
