"""Rooms in order: a module imports only from rooms above it, and shelves' members import no other shelf."""

import ast
import re
from pathlib import Path

import pytest

import ffalora_jax

PACKAGE = Path(ffalora_jax.__file__).parent
ROOMS = (
    "_version",
    "errors",
    "run_log",
    "answers",
    "cache",
    "processes",
    "devices",
    "config_data",
    "config_sites",
    "config_training",
    "config_watch",
    "config",
    "experiment_file",
    "config_search",
    "config_pilot",
    "registry",
    "types",
    "rng",
    "schedules",
    "search",
    "fetch",
    "data",
    "text",
    "codec",
    "images",
    "encode",
    "partition",
    "cohort",
    "packing",
    "layers",
    "blocks",
    "models",
    "weights",
    "locate",
    "pretrained",
    "adapters",
    "lora_init",
    "targets",
    "detours",
    "lora_layers",
    "surgery",
    "lora",
    "memory",
    "prefix",
    "peft_names",
    "peft_refuse",
    "peft_io",
    "generate",
    "clipping",
    "accounting",
    "composition",
    "mechanisms",
    "methods",
    "freezing",
    "ensemble",
    "controls",
    "compression",
    "messages",
    "tasks",
    "probes",
    "optimizers",
    "client",
    "flops",
    "chunking",
    "aggregation",
    "server",
    "uploads",
    "monitor",
    "mesh",
    "slots",
    "round",
    "deal",
    "initial",
    "warm_start",
    "load",
    "loader",
    "checks",
    "network",
    "presence",
    "prepare",
    "findings",
    "lint_sites",
    "lint",
    "audit",
    "engine",
    "together",
    "metrics",
    "evaluate",
    "respond",
    "held_out",
    "checkpoint",
    "run_folder",
    "run_facts",
    "adapter_file",
    "loaded_run",
    "loaded_adapter",
    "report",
    "predict",
    "book",
    "record",
    "interrupt",
    "loop",
    "simulation",
    "matched",
    "many_runs",
    "search_cost",
    "sweep_results",
    "shared_search",
    "searching",
    "sweeps",
    "plots",
    "pilot_rules",
    "pilot_course",
    "piloting",
    "pilot_facts",
    "pilot_found",
    "pilot_audit",
    "pilot_page",
    "pilots",
    "trackers",
    "console",
    "console_sweep",
    "flags",
    "plan",
    "cli_plan",
    "cli_check",
    "cli_audit",
    "cli_privacy",
    "cli_sweep",
    "cli_ask",
    "cli_pilot",
    "cli_run",
    "cli_predict",
    "cli_doctor",
    "cli_completion",
    "merge",
    "model_card",
    "export",
    "glue_files",
    "prepare_data",
    "cli",
)
SHELVES = {"data", "models", "lora_init", "mechanisms", "methods", "search", "trackers"}
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE
)


def room(module: str) -> str:
    return module.split(".")[0]


def imported(path: Path) -> list[str]:
    """Modules of the package that a file imports, at its top or inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ffalora_jax"):
            inner = (node.module or "").removeprefix("ffalora_jax").removeprefix(".")
            found += [inner] if inner else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [
                a.name.removeprefix("ffalora_jax.")
                for a in node.names
                if a.name.startswith("ffalora_jax.")
            ]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_to_rooms_above(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    here = ROOMS.index(parts[0])
    for module in imported(path):
        there = room(module)
        assert ROOMS.index(there) <= here, f"{path.name} imports {module}, which comes later"
        if there in SHELVES and there == parts[0] and parts[-1] != "__init__":
            sibling = module.split(".")[-1]
            assert sibling in {there, *_private(there)}, (
                f"{path.name} imports its neighbour {module}"
            )


def _private(shelf: str) -> list[str]:
    return [path.stem for path in (PACKAGE / shelf).glob("_*.py")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_readable(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text)), "a module opens with what it is"


def test_nothing_in_the_package_could_run_foreign_code():
    banned = r"import pickle|torch\.load|trust_remote_code|(?<![.\w])(eval|exec)\(|shell=True"
    for path in MODULES:
        assert not re.search(banned, path.read_text()), path.name


def test_the_table_of_rooms_in_contributing_is_whole_and_in_order():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    table = text[text.index("| room |") : text.index("Decisions that")]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = re.findall(r"`([a-z_0-9]+)/?`", " ".join(cells))
    assert named == [room for room in ROOMS if room != "_version"]
