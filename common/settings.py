"""Reading settings: frozen models, kebab-case TOML, every fault in one message."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeGuard, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError

from consilium.common.errors import SettingsError

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
"""A site's or study's name: it becomes a folder, a certificate's subject and a word in tables."""


def kebab(name: str) -> str:
    """Give the TOML spelling of a field name: ``image_budget`` is written ``image-budget``."""
    return name.replace("_", "-")


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys are faults, keys are written in kebab-case."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=kebab,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


def split_commas(value: object) -> object:
    """Let a list be given as ``"a,b"`` too: Flower's run-config carries no lists."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


NameList = Annotated[tuple[Name, ...], BeforeValidator(split_commas)]

SettingsT = TypeVar("SettingsT", bound=BaseModel)


def parse(model: type[SettingsT], values: Mapping[str, Any], origin: str) -> SettingsT:
    """Validate settings and report all faults at once.

    Parameters
    ----------
    model
        The settings' model.
    values
        What was read, in TOML spelling.
    origin
        Where it came from, for the message: a path, "run-config".

    Raises
    ------
    SettingsError
        With one line a fault: where, what the rule is, what came.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(model, dict(fault))}" for fault in error.errors(include_url=False))
        count = error.error_count()
        raise SettingsError(f"{origin}: {count} fault{'s' * (count != 1)}\n{faults}") from None


def _fault(model: type[BaseModel], fault: dict[str, Any]) -> str:
    loc = _without_kinds(model, fault["loc"])
    where = ".".join(kebab(str(part)) for part in loc) or "settings"
    if fault["type"] == "union_tag_invalid":
        return f"{where}.kind: one of {fault['ctx']['expected_tags']}; got {fault['ctx']['tag']!r}"
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, fault["loc"][:-1])
        return f"{where}: unknown key" + (f"; known here: {', '.join(known)}" if known else "")
    if fault["type"] == "missing":
        return f"{where}: is required and was not given"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}; got {fault['input']!r}"


def _known_keys(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    here: object = model
    for part in path:
        here = _below(here, part)
    return [kebab(name) for name in here.model_fields] if _is_model(here) else []


def _without_kinds(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str | int]:
    """Leave out of a path what pydantic puts there for a table of several kinds: the kind."""
    here: object = model
    kept = []
    for part in path:
        if _is_model(here) or not _members(here):
            kept.append(part)
        here = _below(here, part)
    return kept


def _below(here: object, part: str | int) -> object:
    """What lies at a key of a model, or which model a kind stands for; None where nothing is known."""
    if _is_model(here):
        fields = {kebab(name): info.annotation for name, info in here.model_fields.items()}
        return fields.get(kebab(str(part)))
    return next((one for one in _members(here) if part in get_args(one.model_fields["kind"].annotation)), None)


def _members(kinds: object) -> list[type[BaseModel]]:
    """The models of a table of several kinds."""
    return [one for one in get_args(kinds) if _is_model(one) and "kind" in one.model_fields]


def _is_model(one: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(one, type) and issubclass(one, BaseModel)


def load(model: type[SettingsT], path: Path) -> SettingsT:
    """Read a TOML file into settings; see `parse`."""
    return parse(model, read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; `SettingsError` says where it is missing or malformed."""
    try:
        return toml_of(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: there is no such settings file; give the path of a .toml file") from None
    except (ValueError, IsADirectoryError) as error:
        raise SettingsError(f"{path}: not a TOML file: {error}") from None


def toml_of(text: str) -> dict[str, Any]:
    """Read TOML; `ValueError` where it is malformed, has numbers without end, or is nested deeper than Python follows."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def to_toml(settings: BaseModel) -> str:
    """Write settings as TOML, every value spelled out."""
    return tomli_w.dumps(settings.model_dump(mode="json", by_alias=True))
