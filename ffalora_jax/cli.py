"""The command ``ffalora``. Parses, calls, prints; every failure a user can cause is one line and code 2.

Imports nothing heavy before it knows what is asked: ``ffalora --help`` and ``ffalora privacy`` load no JAX.
"""

import json
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
                            train; without a file, the settings of `ffalora init`
  resume RUN [--rounds N] [--epsilon E]
                            go on after a stop, to the same result; or add N rounds
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

    experiment, out = flags.read_run(arguments)
    use_jax()
    from ffalora_jax import console, simulation

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
    asked = parser.parse_args(arguments)
    use_jax()
    from ffalora_jax import console, simulation
    from ffalora_jax.load import load_dataset
    from ffalora_jax.run_folder import RunFolder

    data = None
    if asked.data_path is not None:
        experiment = RunFolder.open(asked.run).experiment()
        data = load_dataset(experiment.replace(**{"data.path": asked.data_path}))
    with console.progress() as observe:
        run = simulation.resume(
            asked.run, data, rounds=asked.rounds, epsilon=asked.epsilon, observe=observe
        )
    return _finish(run)


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
    parser = parser_of(
        "predict", "Label new texts with a run's model; prints label and probabilities."
    )
    parser.add_argument("run", help="folder of the run")
    parser.add_argument(
        "--input",
        required=True,
        help="CSV with a header, or any other file: a text a line; images: a file or folder",
    )
    parser.add_argument("--text", help="CSV: column with the text (default: the run's)")
    parser.add_argument("--text-pair", help="CSV: column with the second text, for runs on pairs")
    parser.add_argument("--client", help="whose personal leaves to use, if the run has some")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of a table")
    asked = parser.parse_args(arguments)
    use_jax()
    from ffalora_jax.loaded_run import load_run
    from ffalora_jax.predict import read_images, read_texts

    run = load_run(asked.run)
    if run.kind == "images":
        files = read_images(asked.input)
        _show_predictions(run.predict(files, None, asked.client), asked.json, list(map(str, files)))
        return DONE
    data = run.experiment.data
    column = data.prompt if run.kind == "instructions" else data.text
    texts, pairs = read_texts(asked.input, asked.text or column, asked.text_pair or data.text_pair)
    if run.kind == "instructions":
        said = run.generate(texts, asked.client)
        print(json.dumps({"responses": said}) if asked.json else "\n".join(said))
    else:
        _show_predictions(run.predict(texts, pairs, asked.client), asked.json)
    return DONE


def _show_predictions(found: list, as_json: bool, files: list[str] | None = None) -> None:
    """Prints a line an example: its file if it has one, label, probabilities."""
    from ffalora_jax.run_folder import plain

    named = [{"file": file} for file in files] if files else [{}] * len(found)
    if as_json:
        rows = [name | one._asdict() for name, one in zip(named, found, strict=True)]
        print(json.dumps(plain({"predictions": rows})))
        return
    names = list(found[0].probabilities)
    print("\t".join([*named[0], "label", *(f"p({name})" for name in names)]))
    for name, one in zip(named, found, strict=True):
        each = (f"{one.probabilities[n]:.4f}" for n in names)
        print("\t".join([*name.values(), one.label, *each]))


def _evaluate(arguments: list[str]) -> int:
    from ffalora_jax import flags

    asked = flags.read_evaluate(arguments)
    use_jax()
    from ffalora_jax.loaded_run import load_run
    from ffalora_jax.predict import evaluate_run, same_source

    run = load_run(asked.run)
    if same_source(asked.data, run.experiment.data):
        tested = "" if run.accuracy is None else f" (its test part alone: {run.accuracy:.4f})"
        print(
            f"ffalora: this is the run's own data, what it was trained on included{tested}",
            file=sys.stderr,
        )
    found = evaluate_run(run, asked.data, asked.client)
    if asked.json:
        print(json.dumps(found))
    else:
        count = found.pop("num_examples")
        classes = found.pop("per_class", {})
        for name, value in found.items():
            print(f"{name} {value:.4f} on {count} examples")
        for name, one in classes.items():
            print(f"  {name}: {one['accuracy']:.4f} of {one['num_examples']}")
    return DONE


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
    sys.exit(main())


if __name__ == "__main__":
    entry()
