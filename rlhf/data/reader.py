"""Files, folders and data sets of the Hub as tables, with every cell as it was written.

Files are not read by Datasets, which would guess types (007 becomes 7), take the brackets in a path for a pattern,
refuse a column whose type changes, and keep a copy that outlives the file. Only the Hub is left to it.
"""

import csv
import gzip
import io
import json
import os
import re
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict, load_dataset
from datasets.data_files import sanitize_patterns
from datasets.exceptions import DatasetNotFoundError
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from rlhf.config import BadInput


KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
"""How a file is read, by its ending; any may be followed by .gz."""
_SPLITS = {
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval|evaluation",
    "train": "train|training",
}
"""The words in a file's name or folder that say which split it belongs to, as in Datasets."""
_SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}")
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
"""What ends a line in a file. To `str.splitlines`, so do U+2028 and a form feed, which are part of a text."""
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")

csv.field_size_limit(2**31 - 1)  # by default a cell of more than 131,072 characters is an error


@dataclass
class Table:
    """The rows of a split; a row need not hold every column."""

    columns: list[str]
    rows: Iterable[dict]


def spelling(columns: Iterable[str], known: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """Known column -> as the data spell it: in any case, with spaces around it. Those that there are, in order.

    Args:
        columns: as the data spell them.
        known: names of columns, or what each is called in these data.
    """
    called = known if isinstance(known, Mapping) else {name: name for name in known}
    columns = [column for column in columns if column]
    loosely = {column.strip().lower(): column for column in columns}
    found = {
        name: column if column in columns else loosely.get(column.strip().lower()) for name, column in called.items()
    }
    return {name: column for name, column in found.items() if column is not None}


def read(dataset_name: str, called: str | None = None) -> dict[str, Table]:
    """Read a file by its ending, a folder of such files or of `save_to_disk`, or a data set of the Hub; its splits.

    Args:
        dataset_name: a path, where `~` is the home folder, or a name on the Hub. A folder or data set with several
            configurations takes the name of one after a colon: "name:config".
        called: what messages call it, instead of its path.

    Raises:
        BadInput: it does not exist or cannot be read.
    """
    path, config = _located(dataset_name)
    called = called or dataset_name
    kind = kind_of(path)
    try:
        if os.path.isdir(path):
            return _read_folder(Path(path), config, called)
        if config is None and os.path.isfile(path) and kind:
            return {"train": _read_file(Path(path), called)}
        if kind and config is None:
            raise BadInput(f"There is no file {called}; check the path.")
        if not os.path.isfile(path):
            return {split: Table(part.column_names, part) for split, part in _fetch(path, config).items()}
    except BadInput:
        raise
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError):
        pass
    except Exception as error:  # parsers raise all kinds of errors on a faulty file
        reason = " ".join(str(getattr(error, "strerror", None) or error.__cause__ or error).split())[:200]
        hint = f"name a configuration as {called}:NAME" if "config" in reason else "check its contents"
        raise BadInput(
            f"{called} could not be read as {kind or 'a data set'} ({reason or type(error).__name__}); {hint}."
        ) from error
    raise BadInput(
        f"{called} is neither a file ending in {', '.join(KINDS)} (or .gz of these) nor a folder of such files nor a "
        "data set that could be fetched from the Hub; check the name, the extension and the network."
    )


def kind_of(path: str | Path) -> str | None:
    """How a file of this name is read; None if it is not."""
    name = str(path).lower()
    return KINDS.get(Path(name.removesuffix(".gz")).suffix)


def unpacked_size(path: Path, most: int) -> int:
    """Bytes of a file once it is unpacked, or any number above `most` if they are more: it is not read to the end.

    Raises:
        BadInput: it cannot be unpacked.
    """
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            data = file.read(most + 1)
        if kind_of(path) != "parquet" or len(data) > most:
            return len(data)
        table, size = pyarrow.parquet.ParquetFile(io.BytesIO(data)), 0
        for rows in table.iter_batches(batch_size=64):
            size += rows.nbytes
            if size > most:
                break
        return size
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        raise BadInput(f"{path.name} could not be unpacked ({error}); check its contents.") from error


def _located(name: str) -> tuple[str, str | None]:
    """A path or a name on the Hub, and the configuration that follows its colon."""
    path = os.path.expanduser(name)
    configured = None if os.path.exists(path) else re.fullmatch(r"(.+):([\w. -]+)", path)
    return configured.groups() if configured else (path, None)


# ---- Files


def _read_file(path: Path, called: str) -> Table:
    data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        data = gzip.decompress(data)
    kind = kind_of(path)
    if kind == "parquet":
        # As a file: by its path, Arrow would take a folder named a=b for a column.
        table = pyarrow.parquet.ParquetFile(io.BytesIO(data)).read()
        return Table(table.column_names, table.to_pylist())
    text = decoded(data, called)
    if kind == "csv":
        columns, rows = _csv_rows(text)
    else:
        rows = _json_rows(text)
        columns = list(dict.fromkeys(column for row in rows for column in row))
    if not rows:
        raise ValueError("it has no rows" if text.strip() else "it is empty")
    return Table(columns, rows)


def decoded(data: bytes, called: str) -> str:
    """The text of a file in UTF-8, UTF-16 or UTF-32, or else in Windows-1252, which is warned about.

    Raises:
        BadInput: it is no text, or a few of its bytes are broken.
    """
    try:
        text = data.decode(json.detect_encoding(data))  # told by the byte-order mark, or by where the zeros are
        if "\0" not in text:
            return text
    except UnicodeDecodeError:
        pass
    if _BINARY.search(data):
        raise BadInput(f"{called} is not a text file; save it as text, in UTF-8.")
    guess = data.decode("utf-8", errors="replace")
    broken = guess.count("\N{REPLACEMENT CHARACTER}")
    # In Windows-1252 hardly any two letters beside each other happen to be one in UTF-8.
    if broken <= sum(not letter.isascii() for letter in guess) - broken:
        line = len(_LINE_BREAK.findall(guess[: guess.index("\N{REPLACEMENT CHARACTER}")])) + 1
        raise BadInput(f"{called} is in UTF-8 with {broken} broken bytes, the first in line {line}; repair them.")
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as error:
        raise BadInput(f"{called} is neither in UTF-8 nor in Windows-1252; save it as UTF-8.") from error
    warnings.warn(f"{called} is not in UTF-8 and was read as Windows-1252; check its accented letters.", stacklevel=2)
    return text


def lines_of(path: Path) -> list[str]:
    """The lines of a text file; see `decoded`."""
    return _LINE_BREAK.split(decoded(path.read_bytes(), path.name))


def _csv_rows(text: str) -> tuple[list[str], list[dict]]:
    """The columns and rows of a table whose cells are separated by what its first line has most of.

    Empty lines may come before it, and a line such as `sep=;`, which Excel takes to name the separator.
    """
    text = re.sub(r"\A([ \t]*\r?\n)*(sep=.[ \t]*\r?\n)?([ \t]*\r?\n)*", "", text)

    def cells(separator: str, strict: bool = False) -> csv.DictReader:
        return csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=strict)

    table = cells(max(",;\t|", key=lambda separator: len(cells(separator).fieldnames or ())), strict=True)
    columns = list(table.fieldnames or ())
    twice = next((column for column in columns if column and columns.count(column) > 1), None)
    if twice:
        raise ValueError(f"two columns are called {twice}; rename one of them")
    try:
        return columns, list(table)
    except csv.Error as error:
        raise ValueError(f"line {table.line_num}: {error}") from error


def _json_rows(text: str) -> list[dict]:
    """Rows from objects one after the other, on a line each or not, or from lists of them."""
    decoder, space = json.JSONDecoder(), re.compile(r"\s*")
    rows, start = [], space.match(text).end()
    while start < len(text):
        value, end = decoder.raw_decode(text, start)
        rows += value if isinstance(value, list) else [value]
        start = space.match(text, end).end()
    number = next((number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)), None)
    if number:
        raise ValueError(f"row {number} is no object with columns")
    return rows


# ---- Folders


def _read_folder(folder: Path, config: str | None, called: str) -> dict[str, Table]:
    """The splits of a folder: saved by Datasets, listed in its README.md, or told by the names of its files.

    Raises:
        BadInput: there is nothing to read, or no such configuration.
    """
    saved = {"train": folder}
    if (folder / "dataset_dict.json").exists():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        saved = {split: folder / split for split in splits}
    if all((part / "state.json").exists() for part in saved.values()):
        # Datasets cannot load a split that was empty when it was saved.
        filled = {
            split: Dataset.load_from_disk(part)
            for split, part in saved.items()
            if json.loads((part / "state.json").read_text(encoding="utf-8"))["_data_files"]
        }
        if not filled:
            raise ValueError("it has no rows")
        return {split: Table(part.column_names, part) for split, part in filled.items()}
    readme = folder / "README.md"
    configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(readme).data) if readme.exists() else {}
    name = config or (configs.get_default_config_name() if configs else None)
    if name not in configs and (configs or config):
        names = ", ".join(configs) or "none"
        raise BadInput(
            f"The configurations of {called.removesuffix(f':{config}')} are {names}; name one after a colon."
        )
    listed = configs[name] if name else {}
    folder = folder / listed.get("data_dir", "")
    if "data_files" in listed:
        splits = {
            split: [path for pattern in patterns for path in sorted(folder.glob(pattern)) if kind_of(path)]
            for split, patterns in sanitize_patterns(listed["data_files"]).items()
        }
    else:
        splits = _splits_by_name(folder, called)
    if not any(splits.values()):
        raise BadInput(f"{called} holds no file ending in {', '.join(KINDS)} (or .gz of these); check the path.")
    return {
        split: _joined([_read_file(path, str(path.relative_to(folder))) for path in paths])
        for split, paths in splits.items()
        if paths
    }


def _splits_by_name(folder: Path, called: str) -> dict[str, list[Path]]:
    """The data files of a folder by split. Like Datasets, it reads one kind of file, the one there is most of."""
    files = [
        (path, path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if kind_of(path) and path.is_file() and not re.search(r"(^|/)(\.|__)", path.relative_to(folder).as_posix())
    ]
    kinds = Counter(kind_of(path) for path, _ in files).most_common()
    if len(kinds) > 1:
        others = ", ".join(str(inside) for path, inside in files if kind_of(path) != kinds[0][0])
        warnings.warn(f"{called}: only {kinds[0][0]} files are read, not {others[:200]}.", stacklevel=2)
    splits: dict[str, list[Path]] = {}
    for path, inside in files:
        if kind_of(path) == kinds[0][0]:
            splits.setdefault(_split_of(inside), []).append(path)
    unnamed = splits.pop("", [])
    return splits if "train" in splits else {"train": unnamed, **splits}


def _split_of(inside: Path) -> str:
    """The split that a path inside a folder names; empty if none."""
    if shard := _SHARD.match(inside.name):
        return shard[1]
    words = inside.as_posix().lower()
    return next((split for split, of in _SPLITS.items() if re.search(rf"(?<![a-z])({of})(?![a-z])", words)), "")


def _joined(tables: list[Table]) -> Table:
    columns = dict.fromkeys(column for table in tables for column in table.columns)
    return Table(list(columns), [row for table in tables for row in table.rows])


# ---- The Hub


def _fetch(name: str, config: str | None) -> DatasetDict:
    """A data set from the Hub, or from the cache if the Hub does not answer.

    The Hub is asked first, with a timeout: Datasets would retry for half a minute before it uses the cache.

    Raises:
        BadInput: the cache cannot be written.
        DatasetNotFoundError: there is no such data set.
    """
    cache = datasets.config.HF_DATASETS_CACHE
    try:
        os.makedirs(cache, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
    except OSError as error:
        raise BadInput(
            f"The cache {cache} cannot be written ({error.strerror}); set HF_HOME to a folder that can be."
        ) from error
    offline = datasets.config.HF_HUB_OFFLINE
    try:
        if not offline:
            HfApi().dataset_info(name, timeout=10)
    except (HfHubHTTPError, HFValidationError) as error:
        raise DatasetNotFoundError(name) from error
    except Exception:  # errors of the client's HTTP library, which is not always the same
        datasets.config.HF_HUB_OFFLINE = True
    try:
        return load_dataset(name, config)
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
