"""Experiments as TOML: reading with the place of every mistake, writing with every setting explained."""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomlkit
from typing_extensions import Doc

from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError, nearest


def load_experiment(path: str | Path) -> Experiment:
    """Reads an experiment file; settings that it leaves out keep their defaults.

    Raises:
        InputError: no such file, broken TOML (with the line), unknown setting, wrong type or value.
    """
    return from_table(read_table(path), str(path))


def read_table(path: str | Path) -> dict[str, Any]:
    """Reads a TOML file as nested plain values.

    Raises:
        InputError: as ``load_experiment``.
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(
            f"Cannot read experiment file {str(path)!r} ({error.strerror}): give the path of a "
            "TOML file, or make one with `ffalora init > my.toml`."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"Broken TOML in {path}: {error}.") from None
    except RecursionError:
        raise InputError(f"Broken TOML in {path}: nested too deeply.") from None


def from_table(table: dict[str, Any], where: str = "the experiment") -> Experiment:
    """Builds the checked experiment from nested plain values."""
    for name, command in (("search", "sweep"), ("pilot", "pilot")):
        if name in table:
            raise InputError(
                f"{where} has a table [{name}], which is many runs: make them with `ffalora {command}`, or "
                "take the table out."
            )
    return build(Experiment, table, where)


def build(cls: Any, table: dict[str, Any], where: str, prefix: str = "") -> Any:
    """Builds a config class from nested plain values.

    Raises:
        InputError: an unknown setting, or a value of another type.
    """
    hints = settings(cls)
    values = {}
    for name, value in table.items():
        if name not in hints:
            hint = nearest(name, hints)
            raise InputError(f"No setting {prefix + name!r} in {where}.{hint or _list(hints)}")
        kind = hints[name].kind
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise InputError(f"Expected a table [{prefix + name}] in {where}, got {value!r}.")
            values[name] = build(kind, value, where, prefix=f"{prefix}{name}.")
        else:
            values[name] = checked(kind, value, f"{prefix}{name}", where)
    return cls(**values)


def _list(names) -> str:
    return f" There are: {', '.join(names)}."


def checked(kind: Any, value: Any, name: str, where: str) -> Any:
    """Returns the value if it has the setting's type; whole numbers pass for real ones.

    Raises:
        InputError: it has another.
    """
    if isinstance(kind, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and name == "client_chunk" and type(value) is int:
        return str(value)
    if typing.get_origin(kind) is dict:
        if isinstance(value, dict) and typing.get_args(kind)[1] is Any:
            return value
        if isinstance(value, dict):
            return {
                key: checked(float, item, f"{name}.{key}", where) for key, item in value.items()
            }
        kind = dict
    if type(value) is not kind:
        raise InputError(f"Expected {kind.__name__} for {name} in {where}, got {value!r}.")
    return value


class Setting(typing.NamedTuple):
    """One setting as the user sees it."""

    kind: Any
    default: Any
    help: str


def settings(cls) -> dict[str, Setting]:
    """Returns every setting of a config class with its type, default and description."""
    found = {}
    hints = typing.get_type_hints(cls, include_extras=True)
    for entry in dataclasses.fields(cls):
        hint = hints[entry.name]
        doc = next(
            (m.documentation for m in getattr(hint, "__metadata__", ()) if isinstance(m, Doc)), ""
        )
        kind = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        default = entry.default_factory() if callable(entry.default_factory) else entry.default
        found[entry.name] = Setting(kind, default, doc)
    return found


def kind_of_setting(name: str) -> Any:
    """Returns the type of a setting of an experiment, by its dotted name.

    Raises:
        InputError: there is none of that name.
    """
    table, _, setting = name.rpartition(".")
    known = settings(Experiment)
    if table:
        known = settings(known[table].kind) if table in known else {}
    if setting not in known or dataclasses.is_dataclass(known[setting].kind):
        every = {
            f"{table}.{inner}"
            for table, one in settings(Experiment).items()
            if dataclasses.is_dataclass(one.kind)
            for inner in settings(one.kind)
        }
        raise InputError(f"No setting {name!r}.{nearest(name, every | set(settings(Experiment)))}")
    kind = known[setting].kind
    if isinstance(kind, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    return kind


def flat_settings(experiment: Experiment) -> dict[str, Any]:
    """Returns every setting by its dotted name."""
    table, found = dataclasses.asdict(experiment), {}
    for name, value in table.items():
        one = (
            {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {}
        )
        found |= one or {name: value}
    return found


def unlike(experiments: Sequence[Experiment], but: tuple[str, ...]) -> list[str]:
    """Returns the settings in which experiments differ, without those that begin with ``but``."""
    every = [flat_settings(experiment) for experiment in experiments]
    return [
        name
        for name in every[0]
        if not name.startswith(but) and len({str(one.get(name)) for one in every}) > 1
    ]


def to_toml(experiment: Experiment, comments: bool = False) -> str:
    """Writes an experiment as TOML; with comments, every setting is explained."""
    document = tomlkit.document()
    if comments:
        document.add(tomlkit.comment("An experiment of ffalora_jax. Run it: ffalora run my.toml"))
        document.add(
            tomlkit.comment("Every setting stands here with its default; remove what you keep.")
        )
        document.add(tomlkit.nl())
    _write(document, experiment, comments)
    return tomlkit.dumps(document)


def with_table(experiment: Experiment, name: str, config: Any) -> str:
    """Writes an experiment with a table of many runs, [search] or [pilot]."""
    document = tomlkit.document()
    _write(document, experiment, False)
    table = tomlkit.table()
    _write(table, config, False)
    document.add(name, table)
    return tomlkit.dumps(document)


def _write(container, config, comments: bool) -> None:
    found = settings(type(config))
    # What becomes a table of its own comes last: whatever stands behind its header belongs to it.
    for name in sorted(found, key=lambda name: isinstance(getattr(config, name), dict)):
        setting = found[name]
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            table = tomlkit.table()
            if comments:
                table.comment((type(value).__doc__ or "").partition("\n")[0])
            _write(table, value, comments)
            container.add(name, table)
        elif value is None:
            if comments:
                container.add(tomlkit.comment(f"{name} =   # {setting.help}"))
        else:
            item = tomlkit.item(value)
            if comments:
                item.comment(setting.help)
            container.add(name, item)
