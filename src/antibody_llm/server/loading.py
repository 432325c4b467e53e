"""``antibody.yaml`` as ``ServerSettings``, each fault with its file and key."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from ..errors import ConfigError
from ..evaluation.judges.own import file_of
from ..files import reason
from ..parsing import load_yaml, nearest, parse_value, yaml_fault
from ..text import quoted
from .settings import OfferedModel, ServerSettings


def load_settings(path: Path | None, **changes: Any) -> ServerSettings:
    """The settings of a file, with some of them replaced.

    Args:
        path: ``antibody.yaml``; None: the defaults. Its relative paths are relative to the file's folder.
        changes: Fields of ``ServerSettings``, as flags set them; a relative ``home`` among them, to the current folder.

    Returns:
        Settings whose paths are absolute: every stage of a job runs in a folder of its own.

    Raises:
        ConfigError: the file is unreadable or not YAML, or a key or value is wrong; names file and key.
    """
    values: Any = {}
    if path is not None:
        try:
            values = load_yaml(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read ({reason(error)}). Check the path.") from None
        except yaml.YAMLError as error:
            raise yaml_fault(str(path), error) from None
    try:
        settings: ServerSettings = _made(ServerSettings, values, "")
        folder = Path.cwd() if path is None else path.absolute().parent
        placed: dict[str, Any] = {
            name: str(folder / value)
            for name in ("harmful_prompts", "benign_prompts", "audit")
            if (value := getattr(settings.gate, name))
        }
        placed["judges"] = tuple(
            f"{folder / file}{name.removeprefix(file)}" if (file := file_of(name)) else name
            for name in settings.gate.judges
        )
        models = changes.get("models")
        changes["models"] = _placed(settings.models, folder) if models is None else _placed(models, Path.cwd())
        home: Path = changes.pop("home", folder / settings.home)
        changes = {"gate": replace(settings.gate, **placed)} | changes
        return replace(settings, home=home.absolute(), **changes)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path is not None else str(error)) from None


def _placed(models: Sequence[OfferedModel], folder: Path) -> tuple[OfferedModel, ...]:
    """The models with absolute folders, where a name or path is that of a folder below another one."""

    def whole(path: str) -> str:
        return str((folder / path).absolute()) if path and (folder / path / "config.json").is_file() else path

    return tuple(replace(model, path=whole(model.path or model.name), base=whole(model.base)) for model in models)


def settings_of(values: Mapping[str, Any]) -> ServerSettings:
    """The settings that ``dataclasses.asdict`` gave, with paths as text."""
    settings: ServerSettings = _made(ServerSettings, values, "")
    return settings


def _made(kind: Any, values: Any, where: str) -> Any:
    """A dataclass from a mapping; ``where`` is its key in the file, with a dot behind."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where.rstrip('.') or 'the file'}: a mapping of keys is needed, this is {quoted(values)}.")
    hints, names = get_type_hints(kind), [each.name for each in fields(kind)]
    made = {}
    for key, value in values.items():
        if key not in names:
            raise ConfigError(
                f"{where}{quoted(key)[1:-1]}: no such key{nearest(str(key), names)} Keys: {', '.join(names)}."
            )
        made[key] = _value(hints[key], value, f"{where}{key}")
    for each in fields(kind):
        if each.name not in made and each.default is MISSING and each.default_factory is MISSING:
            raise ConfigError(f"{where}{each.name} is missing. Add it.")
    return kind(**made)


def _value(hint: Any, value: Any, name: str) -> Any:
    if is_dataclass(hint):
        return _made(hint, {} if value is None else value, f"{name}.")
    inner = get_args(hint)[0] if get_origin(hint) is tuple else None
    if is_dataclass(inner):
        if not isinstance(value, list):
            raise ConfigError(f"{name}: a list is needed, this is {quoted(value)}.")
        return tuple(_model(inner, each, f"{name}[{index}].") for index, each in enumerate(value))
    return parse_value(hint, value, name)


def _model(kind: Any, value: Any, where: str) -> Any:
    return named_model(value) if isinstance(value, str) else _made(kind, value, where)


def named_model(name: str) -> OfferedModel:
    """The model that a name alone offers: of the lab the aligned one, since ``lab`` itself complies with everything."""
    return OfferedModel(name=name, path={"lab": "lab-aligned"}.get(name, name))
