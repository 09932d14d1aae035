"""Directives that ask the package itself: its settings, its command's help, the members of its shelves.

{settings} Experiment        a table out of the annotations of a config class
{help} run                   what ``ffalora run --help`` prints
{members} mechanisms         name and docstring of every member of a shelf
"""

import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import re
import types
import typing

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

COLUMNS = "100"
"""Width of what ``--help`` prints."""


class Settings(SphinxDirective):
    """A table of a config class: setting, type, default, meaning."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        from ffalora_jax import config, config_pilot, config_search
        from ffalora_jax.experiment_file import settings

        name = self.arguments[0]
        homes = (config, config_search, config_pilot)
        cls = next(vars(home)[name] for home in homes if name in vars(home))
        rows = [
            (entry, _type(found.kind), _default(found.default), found.help)
            for entry, found in settings(cls).items()
            if not dataclasses.is_dataclass(found.kind)
        ]
        lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{a}` | {b} | {c} | {_cell(d)} |" for a, b, c, d in rows]
        return self.parse_text_to_nodes("\n".join([inspect.getdoc(cls) or "", "", *lines]))


class Help(SphinxDirective):
    """What a command prints when it is asked for help."""

    required_arguments = 0
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = help_of(*self.arguments)
        block = nodes.literal_block(text, text)
        block["language"] = "text"
        return [block]


class Members(SphinxDirective):
    """All members of a shelf, each with the docstring of its file, as it stands there."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        for name, text in members_of(self.arguments[0]):
            section = nodes.section(ids=[f"{self.arguments[0]}-{name.replace('_', '-')}"])
            section += nodes.title("", "", nodes.literal(text=name))
            block = nodes.literal_block(text, text)
            block["language"] = "text"
            section += block
            found.append(section)
        return found


def help_of(*command: str) -> str:
    """Returns what ``ffalora [COMMAND] --help`` prints."""
    from ffalora_jax import cli

    shown, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            cli.main([*command, "--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return "\n".join(line.rstrip() for line in shown.getvalue().splitlines()).strip()


def members_of(shelf: str) -> list[tuple[str, str]]:
    """Returns name and module docstring of every member that the package brings."""
    from ffalora_jax import registry

    found = []
    for name in registry.members(shelf):
        module = importlib.import_module(f"ffalora_jax.{registry.SHELVES[shelf]}.{name}")
        found.append((name, inspect.getdoc(module) or ""))
    return found


def _type(kind) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join("unset" if k is type(None) else _type(k) for k in typing.get_args(kind))
    return getattr(kind, "__name__", str(kind)) if typing.get_origin(kind) is None else "table"


def _default(value) -> str:
    if value is None:
        return "unset"
    return (
        f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else '`""`'
    )


def _cell(text: str) -> str:
    return re.sub(r"([|*_$<>\[\]])", r"\\\1", text)


def setup(app) -> dict[str, bool]:
    """Registers the directives."""
    app.add_directive("settings", Settings)
    app.add_directive("help", Help)
    app.add_directive("members", Members)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
