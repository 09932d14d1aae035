"""The commands ``ffalora predict`` and ``ffalora evaluate``: a run's model on new or labelled examples."""

import json
import sys

from ffalora_jax import flags
from ffalora_jax.cli_privacy import parser_of
from ffalora_jax.loaded_run import load_run
from ffalora_jax.predict import evaluate_run, read_images, read_texts, same_source
from ffalora_jax.run_folder import plain


def predict(arguments: list[str]) -> int:
    """Runs ``ffalora predict`` and returns its exit code."""
    parser = parser_of(
        "predict", "Label new texts with a run's model; prints label and probabilities."
    )
    parser.add_argument("run", help="folder of the run")
    parser.add_argument(
        "--input",
        required=True,
        help="CSV with a header, or any other file: a text a line, as is what comes out (a line break in an "
        "answer as \\n); images: a file or folder",
    )
    parser.add_argument("--text", help="CSV: column with the text (default: the run's)")
    parser.add_argument("--text-pair", help="CSV: column with the second text, for runs on pairs")
    parser.add_argument("--client", help="whose personal leaves to use, if the run has some")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of a table")
    asked = parser.parse_args(arguments)
    run = load_run(asked.run)
    if run.kind == "images":
        files = read_images(asked.input)
        _show_predictions(run.predict(files, None, asked.client), asked.json, list(map(str, files)))
        return 0
    data = run.experiment.data
    column = data.prompt if run.kind == "instructions" else data.text
    texts, pairs = read_texts(asked.input, asked.text or column, asked.text_pair or data.text_pair)
    if run.kind == "instructions":
        said = run.generate(texts, asked.client)
        lines = (one.replace("\\", r"\\").replace("\n", r"\n") for one in said)  # an answer a line
        print(json.dumps({"responses": said}) if asked.json else "\n".join(lines))
    else:
        _show_predictions(run.predict(texts, pairs, asked.client), asked.json)
    return 0


def _show_predictions(found: list, as_json: bool, files: list[str] | None = None) -> None:
    """Prints a line an example: its file if it has one, label, probabilities."""
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


def evaluate(arguments: list[str]) -> int:
    """Runs ``ffalora evaluate`` and returns its exit code."""
    asked = flags.read_evaluate(arguments)
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
    return 0
