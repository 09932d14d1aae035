"""The command ``ffalora``. Parses, calls, prints; every failure a user can cause is one line and code 2.

Imports nothing heavy before it knows what is asked: ``ffalora --help`` and ``ffalora privacy`` load no JAX.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ffalora_jax import cli_privacy
from ffalora_jax._version import __version__
from ffalora_jax.cli_privacy import parser_of
from ffalora_jax.errors import BAD_INPUT, DONE, FAILED, INTERRUPTED, InputError, nearest

Command = Callable[[list[str]], int]

UNSAVED = "stopped before the first round: nothing was saved"

HELP = f"""ffalora {__version__}: differentially private federated LoRA fine-tuning, simulated fast

usage: ffalora COMMAND ...

  run [EXPERIMENT.toml] [--method.name ffa_lora --privacy.epsilon 6 ...] [--out runs/NAME]
      [--processes auto] [--track tensorboard,wandb,mlflow]
                            train; without a file, the settings of `ffalora init`
  resume RUN [--rounds N] [--epsilon E]
                            go on after a stop, to the same result; or add N rounds
  sweep [EXPERIMENT.toml] --over NAME=VALUE,VALUE [--seeds N] [--compare NAME]
                            many runs: grids, random, halving, Bayesian; what all of it cost
  pilot [EXPERIMENT.toml] [--ask] [--quick] [--minutes 20] [--language en|ja]
                            a small study before a decision; one page for people who decide
  plan [EXPERIMENT.toml] [--device h200] [--clients N] [--json]
                            operations, memory, bytes, time and epsilon, before anything runs
  check EXPERIMENT.toml|RUN [--json]
                            what gives no error and is still wrong, or promises too little
  audit [EXPERIMENT.toml] [--canaries N] [--json]
                            epsilon that a mechanism gives away at least, beside its claim
  predict RUN --input F [--text COLUMN] [--client NAME] [--json]
                            label new texts (CSV, or one text a line)
  evaluate RUN [--data.name csv --data.path F ...] [--json]
                            accuracy of a run's model on labelled data
  export RUN DIR [--merge] [--client NAME]
                            the adapter for PEFT, or a merged Hugging Face model
  report RUN [RUN ...] [--out FILE.html]
                            one page of tables and curves; several runs are compared
  privacy --num-examples N --batch-size B --steps T (--epsilon E | --noise-multiplier S)
                            epsilon from noise, or noise from epsilon; no JAX needed
  list methods|mechanisms|inits|models|datasets|searches|trackers
                            the names there are
  prepare glue/TASK --from DIR [--to DATA_DIR]
                            GLUE's own files, or JSONL -> a TFDS folder
  init                      print a commented experiment with every setting
  completion bash|zsh|fish  print what makes a shell complete commands, flags and names
  doctor [--json]           versions, devices, caches, and one private round computed twice

  with each: --log-level debug|info|warning|error; with run and resume: --debug-nans (stop at the first)

`ffalora COMMAND --help` says more. Start: ffalora run --model.name tiny --data.name synthetic
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(HELP, end="")
        return DONE
    if arguments[0] == "--version":
        print(__version__)
        return DONE
    try:
        arguments = _options(arguments)
        command, *rest = arguments
        if command not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise InputError(
                f"No command {command!r}: there are {known}.{nearest(command, COMMANDS)}"
            )
        return COMMANDS[command](rest)
    except InputError as error:
        print(f"ffalora: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as error:
        print(f"ffalora: {str(error) or UNSAVED}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return DONE
    except (OSError, MemoryError, FloatingPointError) as error:
        print(f"ffalora: {_why(error, arguments[0])}", file=sys.stderr)
        return FAILED


def _options(arguments: list[str]) -> list[str]:
    """Takes what every command understands off its arguments."""
    if any(argument.split("=")[0] == "--log-level" for argument in arguments):
        from ffalora_jax import flags, run_log

        level, arguments = flags.take(arguments, "--log-level", "debug, info, warning or error")
        run_log.set_level(str(level))
    if "--debug-nans" in arguments:
        arguments = [argument for argument in arguments if argument != "--debug-nans"]
        os.environ["JAX_DEBUG_NANS"] = "true"
    if not arguments:
        raise InputError("No command: see `ffalora --help`.")
    return arguments


def _why(error: Exception, command: str) -> str:
    """Says in one line what the machine refused, and what stands."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return (
            f"out of memory ({text}): see `ffalora plan`, and lower batch_size or model.max_tokens."
        )
    if isinstance(error, FloatingPointError):
        return f"--debug-nans stopped the run: {text}"
    what = error.strerror if isinstance(error, OSError) and error.strerror else text
    place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    if command not in ("run", "resume"):
        return f"{what}{place}."
    return f"{what}{place}. What was saved before is whole: `ffalora resume RUN` goes on from it."


def _report(arguments: list[str]) -> int:
    parser = parser_of(
        "report", "Write one self-contained HTML page about a run, or comparing several."
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders; the first is shown in full"
    )
    parser.add_argument(
        "--out", help="file to write (default: report.html in the first run's folder)"
    )
    asked = parser.parse_args(arguments)
    from ffalora_jax.loaded_run import load_run
    from ffalora_jax.report import write_report

    runs = [load_run(path) for path in asked.runs]
    print(write_report(runs, asked.out or runs[0].folder.report))
    return DONE


def _list(arguments: list[str]) -> int:
    from ffalora_jax import registry

    parser = parser_of("list", "Print the names on a shelf, one a line.")
    shelves = sorted(registry.SHELVES)
    parser.add_argument("shelf", choices=shelves, metavar="|".join(shelves))
    asked = parser.parse_args(arguments)
    print("\n".join(registry.available(asked.shelf)))
    return DONE


def _init(arguments: list[str]) -> int:
    parser = parser_of(
        "init", "Print a commented experiment with every setting: ffalora init > my.toml"
    )
    parser.parse_args(arguments)
    from ffalora_jax.config import Experiment
    from ffalora_jax.experiment_file import to_toml

    print(to_toml(Experiment(), comments=True), end="")
    return DONE


def use_jax() -> None:
    """Sets what the command wants of JAX: compiled programs kept between runs, few messages."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    from ffalora_jax.cache import folder

    with contextlib.suppress(OSError):  # without a place for it nothing is kept
        jax.config.update("jax_compilation_cache_dir", str(folder("xla")))
    if os.environ.get("JAX_DEBUG_NANS") == "true":
        jax.config.update("jax_debug_nans", True)


def _told(module: str) -> Command:
    """A command of another module, which calls ``use_jax`` itself once its arguments are read."""

    def call(arguments: list[str]) -> int:
        found = _of(module)
        if hasattr(found, "HELP") and {"-h", "--help"} & set(arguments):
            print(found.HELP, end="")
            return DONE
        return found.run(arguments, use_jax)

    return call


def _jax_first(module: str, function: str = "run") -> Command:
    """A command of another module whose import needs JAX."""

    def call(arguments: list[str]) -> int:
        use_jax()
        return getattr(_of(module), function)(arguments)

    return call


def _of(module: str) -> Any:
    return importlib.import_module(f"ffalora_jax.{module}")


COMMANDS: dict[str, Command] = {
    "run": _told("cli_run"),
    "resume": lambda arguments: _of("cli_run").resume(arguments, use_jax),
    "sweep": _told("cli_sweep"),
    "pilot": _told("cli_pilot"),
    "plan": _told("cli_plan"),
    "check": _told("cli_check"),
    "audit": _told("cli_audit"),
    "predict": _jax_first("cli_predict", "predict"),
    "evaluate": _jax_first("cli_predict", "evaluate"),
    "export": _jax_first("export"),
    "report": _report,
    "privacy": cli_privacy.run,
    "list": _list,
    "prepare": lambda arguments: _of("prepare_data").run(arguments),
    "init": _init,
    "doctor": _told("cli_doctor"),
    "completion": lambda arguments: _of("cli_completion").run(arguments, list(COMMANDS)),
}


def entry() -> None:
    """Entry point of the installed script."""
    code = main()
    processes = sys.modules.get("ffalora_jax.processes")  # slow to import, and seldom there
    sys.exit(code) if processes is None else processes.end(code)


if __name__ == "__main__":
    entry()
