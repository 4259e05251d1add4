"""Presets: settings that a study has unless it says otherwise, laid under what its file says."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal, get_args

from consilium.common.settings import kebab

Preset = Literal["paper", "consensus"]
DEFAULT: Final[Preset] = "consensus"

_TOGETHER: Final = ({"epochs", "image-budget"}, {"optimizer", "weight-decay"})
"""Keys of one decision: whoever sets one of them has taken it, and the preset says nothing of the others."""

_PAPER: Final[Mapping[str, Any]] = {"student": {"training": {"epochs": "paper"}}}


@cache
def _held(preset: Preset) -> Mapping[str, Any]:
    text = files("consilium.configs").joinpath("presets", f"{preset}.toml").read_text("utf-8")
    return tomllib.loads(text)


def values_of(preset: object) -> Mapping[str, Any]:
    """Give the settings of a preset, nested, in TOML spelling.

    The paper's are the defaults of `Study`; named here is the length of a training of which other things are said alone.
    """
    return _held(DEFAULT) if preset == DEFAULT else _PAPER


def keys() -> frozenset[str]:
    """Give the dotted keys that some preset sets."""
    return frozenset(key for preset in get_args(Preset) for key in _keys(values_of(preset), ""))


def lay_under(values: Mapping[str, Any]) -> dict[str, Any]:
    """Complete what was said of a study with the settings of its preset.

    Tables are completed key by key; whatever else was said stays, a table that was made already (a model) as a whole.
    """
    spelled = {kebab(key): value for key, value in values.items()}
    preset = spelled.setdefault("preset", DEFAULT)
    return _under(spelled, values_of(preset))


def _under(said: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    taken = {key for group in _TOGETHER if any(said.get(one) for one in group) for key in group}
    whole = dict(said)
    for key, value in preset.items():
        if key not in said and key not in taken:
            whole[key] = value
        elif isinstance(value, Mapping) and isinstance(said.get(key), Mapping):
            whole[key] = _under({kebab(inner): held for inner, held in said[key].items()}, value)
    return whole


def _keys(table: Mapping[str, Any], prefix: str) -> list[str]:
    found = []
    for key, value in table.items():
        found += _keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return found
