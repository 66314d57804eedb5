"""Recipes: the settings of a whole demo under one name, YAML files in `assets/recipes/` read as --config is."""

from pathlib import Path

import yaml

from rlhf.config.checking import BadInput
from rlhf.config.shared import ASSETS, EVERYDAY


FOLDER = ASSETS / "recipes"


def names() -> list[str]:
    """All recipes, the embedded default first."""
    return sorted((file.stem for file in FOLDER.glob("*.yaml")), key=lambda name: (name != EVERYDAY, name))


def read_recipe(name: str) -> dict[str, object]:
    """Settings of a recipe, those that differ from the defaults.

    Raises:
        BadInput: there is none of this name.
    """
    if name not in names():
        raise BadInput(f"There is no recipe {name}; the recipes are {', '.join(names())}.")
    settings = read_settings(FOLDER / f"{name}.yaml")
    # Data that come with the program are found from any folder.
    data = Path(str(settings.get("dataset_name")))
    shipped = ASSETS.parent / data
    return {**settings, "dataset_name": str(shipped)} if shipped.is_file() and not data.is_file() else settings


def read_settings(file: Path) -> dict[str, object]:
    """Settings of a YAML file.

    Raises:
        BadInput: it does not exist, or holds something else.
    """
    if not file.is_file():
        raise BadInput(f"There is no file {file}; check --config.")
    try:
        read = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(read, dict):
        raise BadInput(f"{file} must hold lines such as `learning_rate: 0.0003`.")
    return read
