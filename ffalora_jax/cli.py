"""The command ``ffalora``. Parses, calls, prints; every failure a user can cause is one line and code 2.

Imports nothing heavy before it knows what is asked: ``ffalora --help`` and ``ffalora privacy`` load no JAX.
"""

import os
import sys
from collections.abc import Sequence

from ffalora_jax import cli_privacy
from ffalora_jax._version import __version__
from ffalora_jax.cli_privacy import parser_of
from ffalora_jax.errors import InputError, nearest

DONE, FAILED, BAD_INPUT, BUDGET, INTERRUPTED = 0, 1, 2, 3, 130

UNSAVED = "stopped before the first round: nothing was saved"

HELP = f"""ffalora {__version__}: differentially private federated LoRA fine-tuning, simulated fast

usage: ffalora COMMAND ...

  run [EXPERIMENT.toml] [--method.name ffa_lora --privacy.epsilon 6 ...] [--out runs/NAME]
      [--processes auto]    train; without a file, the settings of `ffalora init`
  resume RUN [--rounds N] [--epsilon E]
                            go on after a stop, to the same result; or add N rounds
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
  list methods|mechanisms|inits|models|datasets
                            the names there are
  prepare glue/TASK --from DIR [--to DATA_DIR]
                            GLUE's own files, or JSONL -> a TFDS folder
  init                      print a commented experiment with every setting

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
    command, *rest = arguments
    try:
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


def _run(arguments: list[str]) -> int:
    from ffalora_jax import flags

    processes, settings = flags.take(arguments, "--processes", "auto, a number or cluster")
    experiment, out = flags.read_run(settings)
    use_jax()
    from ffalora_jax import console, loop, simulation
    from ffalora_jax.mesh import make_cpu_devices
    from ffalora_jax.processes import is_first, num_processes, team

    processes = processes or "1"
    make_cpu_devices(experiment.mesh, num_processes(processes))
    with team(processes, ["run", *arguments]):
        if not is_first():
            loop.follow()
            return DONE
        with console.progress() as observe:
            run = simulation.simulate(experiment, out=out, observe=observe)
    return _finish(run)


def _resume(arguments: list[str]) -> int:
    parser = parser_of("resume", "Go on with a run, to the same bits as if it had not stopped.")
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--rounds", type=int, default=0, help="rounds to add to those planned")
    parser.add_argument("--epsilon", type=float, help="a larger privacy budget, for added rounds")
    parser.add_argument(
        "--data.path", dest="data_path", help="where the data lies now, if it was moved"
    )
    parser.add_argument("--mesh", help="devices to use now, like clients=2 (default: as the run)")
    parser.add_argument(
        "--processes", default="1", help="compute in several: auto, a number or cluster"
    )
    asked = parser.parse_args(arguments)
    use_jax()
    from ffalora_jax import console, loop, simulation
    from ffalora_jax.load import load_dataset
    from ffalora_jax.mesh import make_cpu_devices
    from ffalora_jax.processes import is_first, num_processes, team
    from ffalora_jax.run_folder import RunFolder

    experiment = RunFolder.open(asked.run).experiment()
    make_cpu_devices(asked.mesh or experiment.mesh, num_processes(asked.processes))
    with team(asked.processes, ["resume", *arguments]):
        data = None
        if asked.data_path is not None:
            data = load_dataset(experiment.replace(**{"data.path": asked.data_path}))
        if not is_first():
            loop.follow(data)
            return DONE
        with console.progress() as observe:
            run = simulation.resume(
                asked.run,
                data,
                rounds=asked.rounds,
                epsilon=asked.epsilon,
                mesh=asked.mesh,
                observe=observe,
            )
    return _finish(run)


def _plan(arguments: list[str]) -> int:
    from ffalora_jax import cli_plan

    return cli_plan.run(arguments, use_jax)


def _check(arguments: list[str]) -> int:
    from ffalora_jax import cli_check

    return cli_check.run(arguments, use_jax)


def _audit(arguments: list[str]) -> int:
    from ffalora_jax import cli_audit

    return cli_audit.run(arguments, use_jax)


def _finish(run) -> int:
    from ffalora_jax import console

    console.show_run(run)
    if run.privacy["stopped_at_budget"]:
        print(
            f"ffalora: stopped after round {run.privacy['rounds']} of {run.privacy['planned_rounds']}: the "
            f"next one would pass the privacy budget of {run.privacy['budget']:g}. To go on: "
            f"ffalora resume {run.path} --epsilon LARGER",
            file=sys.stderr,
        )
        return BUDGET
    return DONE


def _predict(arguments: list[str]) -> int:
    use_jax()
    from ffalora_jax import cli_predict

    return cli_predict.predict(arguments)


def _evaluate(arguments: list[str]) -> int:
    use_jax()
    from ffalora_jax import cli_predict

    return cli_predict.evaluate(arguments)


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


def _prepare(arguments: list[str]) -> int:
    from ffalora_jax import prepare_data

    return prepare_data.run(arguments)


def _export(arguments: list[str]) -> int:
    use_jax()
    from ffalora_jax import export

    return export.run(arguments)


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

    jax.config.update("jax_compilation_cache_dir", str(folder("xla")))


COMMANDS = {
    "run": _run,
    "resume": _resume,
    "plan": _plan,
    "check": _check,
    "audit": _audit,
    "predict": _predict,
    "evaluate": _evaluate,
    "export": _export,
    "report": _report,
    "privacy": cli_privacy.run,
    "list": _list,
    "prepare": _prepare,
    "init": _init,
}


def entry() -> None:
    """Entry point of the installed script."""
    code = main()
    processes = sys.modules.get("ffalora_jax.processes")  # slow to import, and seldom there
    sys.exit(code) if processes is None else processes.end(code)


if __name__ == "__main__":
    entry()
