"""Command-line flags over the same dataclasses as the TOML; tyro parses, mistakes become one line."""

import contextlib
import dataclasses
import io
import itertools
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from typing_extensions import Doc

from ffalora_jax.config import DataConfig, Experiment
from ffalora_jax.config_pilot import PilotConfig, default_experiment, load_pilot
from ffalora_jax.config_search import SearchConfig, load_search, read_over
from ffalora_jax.errors import InputError, nearest
from ffalora_jax.experiment_file import load_experiment, settings


def read_run(arguments: list[str]) -> tuple[Experiment, str | None]:
    """Reads ``[EXPERIMENT.toml] [--setting value ...] [--out DIR]``; flags override the file.

    Raises:
        InputError: as ``load_experiment``; an unknown flag (suggests the nearest) or a value of another type.
    """
    file, out, rest = _file_and_folder("run", arguments)
    start = Experiment() if file is None else load_experiment(file)
    description = (
        "Train one model over many sites. [EXPERIMENT.toml] comes first, if any; every setting can be "
        "given as a flag. --out DIR: the run folder (default runs/NAME). --processes auto|N|cluster: compute "
        "in several processes (auto: one pinned to each core; cluster: srun, mpirun, a TPU pod starts them). "
        "--track tensorboard,wandb,mlflow: hand each round's figures to these too."
    )
    usage = "ffalora run [EXPERIMENT.toml] [--out DIR] [--processes auto|N|cluster]"
    return _parse(Experiment, start, rest, usage, description), out


def _file_and_folder(
    command: str, arguments: list[str]
) -> tuple[str | None, str | None, list[str]]:
    """Returns the experiment file and ``--out``, where they are given, and the other arguments."""
    file, rest = None, list(arguments)
    if rest and not rest[0].startswith("-"):
        file = rest.pop(0)
    out, rest = take(rest, "--out", "a folder")
    given = itertools.pairwise(rest)
    late = next((b for a, b in given if b.endswith(".toml") and not a.startswith("--")), None)
    if file is None and late is not None:
        raise InputError(
            f"The experiment file comes first: ffalora {command} {late} --setting value ..."
        )
    return file, out, rest


def take(
    arguments: list[str], name: str, what: str, once: bool = True
) -> tuple[str | None, list[str]]:
    """Returns the value of an option that is no setting (None: not given), and the other arguments.

    Raises:
        InputError: given twice where that says nothing, or without ``what``.
    """
    rest: list[str] = []
    for argument in arguments:
        rest += argument.split("=", 1) if argument.startswith(f"{name}=") else [argument]
    if name not in rest:
        return None, rest
    place = rest.index(name)
    if place + 1 >= len(rest):
        raise InputError(f"Expected {what} after {name}.")
    value = rest[place + 1]
    del rest[place : place + 2]
    if once and name in rest:
        raise InputError(f"{name} is given twice: keep one.")
    return value, rest


@dataclass(frozen=True)
class Searched(Experiment):
    """An experiment with what is varied, as one set of flags."""

    search: SearchConfig = field(default_factory=SearchConfig)


def read_sweep(arguments: list[str]) -> tuple[Experiment, SearchConfig, str | None]:
    """Reads ``[EXPERIMENT.toml] [--over NAME=VALUES ...] [--search.setting value ...]`` and the run's flags.

    Raises:
        InputError: as ``read_run`` and ``read_over``.
    """
    _refuse_for_many(arguments, "a search")
    file, out, rest = _file_and_folder("sweep", arguments)
    over: dict[str, Any] = {}
    while True:
        given, rest = take(rest, "--over", "NAME=VALUE,VALUE", once=False)
        if given is None:
            break
        name, values = read_over(given)
        over[name] = values
    rest = [f"--search.{word[2:]}" if _is_short(word, SHORT) else word for word in rest]
    experiment, search = (Experiment(), SearchConfig()) if file is None else load_search(file)
    # A dictionary of lists is no flag; it is put back afterwards.
    start = Searched(
        **_parts(experiment), search=dataclasses.replace(search, over={}, compare=None)
    )
    compare, rest = take(rest, "--search.compare", "a setting that is varied")
    found = _parse(Searched, start, rest, SWEEP_USAGE, SWEEP_HELP)
    compare = search.compare if compare is None else compare.replace("-", "_")
    search = dataclasses.replace(found.search, over=search.over | over, compare=compare)
    return Experiment(**_parts(found)), search, out


SWEEP_USAGE = "ffalora sweep [EXPERIMENT.toml] --over NAME=VALUE,VALUE [--seeds N] [--out DIR]"
SWEEP_HELP = (
    "Many runs, side by side where they are one program. --over NAME=VALUE,VALUE varies a setting, again for "
    "each (a number also over a range: --over optimizer.learning-rate=0.01..1:log). --seeds, --trials, "
    "--strategy, --storage, --compare are --search.seeds and so on. All others are those of `ffalora run`, "
    "for what the runs have in common. --out DIR: the folder (default sweeps/NAME, numbered if it exists). "
    "--json: print summary.json alone."
)


@dataclass(frozen=True)
class Piloted(Experiment):
    """An experiment with how it is piloted, as one set of flags."""

    pilot: PilotConfig = field(default_factory=PilotConfig)


def read_pilot(arguments: list[str]) -> tuple[Experiment, PilotConfig, str | None]:
    """Reads ``[EXPERIMENT.toml] [--minutes N] [--quick] [--language ja] ...`` and the run's flags.

    Raises:
        InputError: as ``read_run``.
    """
    _refuse_for_many(arguments, "a pilot")
    file, out, rest = _file_and_folder("pilot", arguments)
    experiment, asked = (default_experiment(), PilotConfig()) if file is None else load_pilot(file)
    rest = [f"--pilot.{word[2:]}" if _is_short(word, PILOT_SHORT) else word for word in rest]
    start = Piloted(**_parts(experiment), pilot=asked)
    found = _parse(Piloted, start, rest, PILOT_USAGE, PILOT_HELP)
    return Experiment(**_parts(found)), found.pilot, out


PILOT_USAGE = (
    "ffalora pilot [EXPERIMENT.toml] [--ask] [--quick] [--minutes 20] [--language en|ja] "
    "[--out DIR]"
)
PILOT_HELP = (
    "A small study before a decision: methods, learning rate, privacy, gain of each site over training "
    "alone, initialisers, rank, clip norm, share frozen, traffic and money; one page, two sheets of A4. The "
    "most important questions come first; when the time is over the page is of what there is, and `ffalora "
    "resume` goes on. Without a file: the data of `make demo`. --minutes, --quick, --language, "
    "--price-per-gb, --currency, --trainings-per-month, --canaries are --pilot.minutes and so on; all others "
    "are those of `ffalora run`, for your own data (--data.name csv --data.path F), sites' machines and "
    "links (--sites.speed, --sites.up). --out DIR: the folder (default pilots/NAME, numbered if it exists). "
    "--json: print pilot.json alone. --ask: be asked for data, machines, lines and prices one by one."
)
PILOT_SHORT = tuple(f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(PilotConfig))


def _parts(experiment: Experiment) -> dict[str, Any]:
    return {f.name: getattr(experiment, f.name) for f in dataclasses.fields(Experiment)}


def _refuse_for_many(arguments: list[str], what: str) -> None:
    if any(word.partition("=")[0] in ("--track", "--processes") for word in arguments):
        raise InputError(
            f"--track and --processes are for `ffalora run`: leave them out of {what}."
        )


SHORT = tuple(
    f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(SearchConfig) if f.name != "over"
)


def _is_short(word: str, names: tuple[str, ...]) -> bool:
    return word.partition("=")[0].replace("_", "-") in names


@dataclass(frozen=True)
class Evaluation:
    """What ``ffalora evaluate`` is asked."""

    run: Annotated[str, Doc("folder of the run")] = ""
    client: Annotated[str | None, Doc("whose personal leaves to use, if the run has some")] = None
    json: Annotated[bool, Doc("one JSON object on standard output")] = False
    data: DataConfig = field(default_factory=DataConfig)


def read_evaluate(arguments: list[str]) -> Evaluation:
    """Reads ``RUN [--data.name csv --data.path F ...]``; what is not given is as in the run."""
    if {"-h", "--help"} & set(arguments):
        _parse(
            Evaluation,
            Evaluation(),
            ["--help"],
            "ffalora evaluate RUN",
            "Accuracy on labelled data.",
        )
    if not arguments or arguments[0].startswith("-"):
        raise InputError(
            "Expected a run folder: ffalora evaluate RUN [--data.name csv --data.path F]."
        )
    run, *rest = arguments
    file = Path(run, "experiment.toml")
    if not file.is_file():
        raise InputError(f"No run in {run!r}: expected a folder with experiment.toml in it.")
    data = dataclasses.replace(load_experiment(file).data, max_examples=None)
    start = Evaluation(run=run, data=data)
    return _parse(Evaluation, start, rest, "ffalora evaluate RUN", "Accuracy on labelled data.")


def _parse(cls: type, start: Any, arguments: list[str], prog: str, description: str) -> Any:
    _check_names(cls, arguments, " ".join(prog.split()[:2]))
    shown, complaints = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(complaints):
            return tyro.cli(cls, prog=prog, description=description, default=start, args=arguments)
    except SystemExit as stop:
        if not stop.code:
            print(shown.getvalue(), end="")
            sys.stdout.flush()
            raise
        raise InputError(_one_line(complaints.getvalue() or shown.getvalue())) from None


def _check_names(cls: type, arguments: list[str], command: str) -> None:
    known = {f"--{name}" for name in names_of(cls)}
    for argument in arguments:
        if not argument.startswith("--") or argument == "--help":
            continue
        name = argument.partition("=")[0].replace("-", "_").replace("__", "--", 1)
        positive = name.replace("--no_", "--", 1).replace(".no_", ".", 1)
        if name not in known and positive not in known:
            guess = nearest(name, known).replace("_", "-")
            raise InputError(
                f"No setting {argument.partition('=')[0]!r}.{guess} `{command} --help` lists them all."
            )


def names_of(cls: type, prefix: str = "") -> list[str]:
    """Returns the dotted names of all settings of a config class."""
    found = []
    for name, setting in settings(cls).items():
        if isinstance(setting.kind, type) and dataclasses.is_dataclass(setting.kind):
            found += names_of(setting.kind, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


NO_NUMBER = re.compile(
    r"Error parsing (--[\w.-]+): (?:invalid literal for int|could not convert string to float|no type "
    r"matching {None}\|(?:FLOAT|INT) could).*?'(.*?)'"
)


def _one_line(text: str) -> str:
    """Takes the frame off tyro's message: what stands before its first rule, and the argument's type."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip(" |│╭╮╰╯") for line in text.splitlines()]
    parts: list[list[str]] = [[]]
    for line in lines:
        if re.search(r"[-─]{4,}", line):
            parts.append([])
        elif line:
            parts[-1].append(line)
    filled = [part for part in parts if part]
    said = " ".join(
        next((p for p in filled if re.search(r"[.:']", " ".join(p))), ["Cannot read flags"])
    )
    said = re.sub(r"^(Value error |Error parsing [\w.]+: (?=Expected|No ))+", "", said)
    kind = next((p[1] for p in filled if p[0] == "Argument helptext:" and len(p) > 1), "")
    if number := NO_NUMBER.match(said):
        what = "a whole number" if "INT" in kind else "a number such as 6 or 0.5"
        return f"{number[1]} takes {what}, got {number[2]!r} (see --help)."
    return f"{said.rstrip('.')}{f': expected {kind}' if kind else ''} (see --help)."


def switch(arguments: list[str], name: str) -> tuple[bool, list[str]]:
    """Returns whether a switch like ``--json`` was given, and the other arguments."""
    return name in arguments, [one for one in arguments if one != name]


def read_only(command: str, arguments: list[str]) -> Experiment:
    """Reads the settings for a command that writes nothing.

    Raises:
        InputError: a folder to write to was given.
    """
    experiment, out = read_run(arguments)
    if out is not None:
        raise InputError(f"ffalora {command} writes nothing: leave --out away.")
    return experiment
