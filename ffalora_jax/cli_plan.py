"""``ffalora plan``: what an experiment will cost, before anything runs."""

import json
import sys
from collections.abc import Callable
from typing import Any

from ffalora_jax import flags
from ffalora_jax.devices import device_of
from ffalora_jax.errors import InputError
from ffalora_jax.report import words

NOTES = (
    "time on a named device: operations over 35 % of its makers' dense peak; assumed, not measured",
    "other numbers of clients (--clients N, --cohort N in a round) are on paper, like those there are",
    "memory: parameters, data, and per client at once what JAX keeps for the backward pass",
)
NOT_OF_OTHERS = (
    "not computed for other numbers of clients, which epsilon and noise follow from here"
)

HELP = """usage: ffalora plan [EXPERIMENT.toml] [--device NAME] [--clients N] [--json] [--SETTING VALUE ...]

What an experiment will cost, before anything runs: operations, memory, bytes, privacy, time.

  --device NAME   cpu (this machine, measured; the default), or on paper h200, h100-8, v5e-256, ...
  --clients N     as many clients, each like those the data has; --cohort N of them in a round
  --no-measure    no round is timed
  --json          one JSON object on standard output

Every setting of `ffalora run --help` can be given as well.
"""


def run(arguments: list[str], use_jax: Callable[[], None]) -> int:
    """Prepares the experiment, counts, measures, prints.

    Args:
        arguments: of the command.
        use_jax: prepares JAX, once the arguments are read.
    """
    device, rest = flags.take(arguments, "--device", "a name, like cpu or h200")
    clients, rest = flags.take(rest, "--clients", "a number")
    cohort, rest = flags.take(rest, "--cohort", "a number")
    as_json, rest = flags.switch(rest, "--json")
    no_measure, rest = flags.switch(rest, "--no-measure")
    numbers = whole_number("--clients", clients), whole_number("--cohort", cohort)
    experiment = flags.read_only("plan", rest)
    here = device in (None, "cpu")
    if not here:
        device_of(device)  # a wrong name is told before the data is read
    use_jax()
    from ffalora_jax.mesh import make_cpu_devices
    from ffalora_jax.plan import plan
    from ffalora_jax.prepare import prepare

    make_cpu_devices(experiment.mesh)
    timing = ", then a round is measured" if here and not no_measure else ""
    print(f"preparing data, model and noise{timing}", file=sys.stderr)
    found = plan(prepare(experiment), device or "cpu", *numbers, not no_measure)
    print(json.dumps(found) if as_json else text_of(found))
    return 0


def whole_number(flag: str, text: str | None) -> int | None:
    """Returns the number that is given for a flag; None where none is.

    Raises:
        InputError: no whole number from 1 on.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 10**9):
        raise InputError(f"Expected {flag} to be a number from 1 on, got {text!r}.")
    return int(text)


def text_of(found: dict[str, Any]) -> str:
    """Returns the plan as lines for a person."""
    memory, seconds, privacy = found["memory"], found["seconds"], found["privacy"]
    lines = [
        ("experiment", f"{found['name']}, {found['rounds']} rounds"),
        ("clients", f"{found['clients_in_a_round']:,} of {found['clients']:,} in a round"),
        ("device", f"{found['device']}, mesh {found['mesh']}"),
        ("clients at once", f"{found['client_chunk']} ({found['client_chunk_reason']})"),
        ("prefix cache", found["prefix_cache"]),
        ("privacy", NOT_OF_OTHERS if found["privacy_unknown"] else _privacy(privacy)),
        ("operations", _operations(found)),
        ("memory", _memory(memory)),
        ("examples", _examples(found)),
        ("sent", _sent(found["bytes"])),
        ("time", _time(seconds, found["measured"])),
    ]
    width = max(len(name) for name, _ in lines)
    body = [f"{name:<{width}}  {value}" for name, value in lines]
    notes = [*NOTES]
    if found["answers"]:
        notes.append(f"the {found['answers']:,} answers written at the end are not in the time")
    return "\n".join([*body, "", *(f"- {note}" for note in notes)])


def _memory(memory: dict[str, Any]) -> str:
    total, free, model, each = (
        words.size(memory[name]) for name in ("total", "free", "model", "per_client_at_once")
    )
    wrong = "" if memory["fits"] else "DOES NOT FIT: "
    return f"{wrong}{total} of {free} free: model {model}, each client at once {each}"


def _examples(found: dict[str, Any]) -> str:
    memory = found["memory"]
    moved = f", {words.size(memory['moved_per_round'])} moved a round"
    where = found["client_data"]
    return f"{words.size(memory['data'])} on the {where}{moved if where == 'host' else ''}"


def _privacy(privacy: dict[str, Any] | None) -> str:
    if privacy is None:
        return "none"
    low, high = privacy["noise_multiplier"]
    noise = f"{low:.3f}" if high - low < 5e-4 else f"{low:.3f} to {high:.3f}"
    return (
        f"epsilon {privacy['epsilon']:.3g} at delta {privacy['delta']:g} after "
        f"{privacy['rounds_within_budget']} rounds, noise multiplier {noise}"
    )


def _operations(found: dict[str, Any]) -> str:
    flops = found["flops"]
    return (
        f"{_work(flops['client_step'])} a client's step "
        f"({found['tokens_per_client_step']:,.0f} tokens), {_work(flops['run'])} in all"
    )


def _work(operations: float) -> str:
    for power, unit in ((15, "PFLOP"), (12, "TFLOP"), (9, "GFLOP")):
        if operations >= 10**power:
            return f"{operations / 10**power:,.3g} {unit}"
    return f"{operations / 1e6:,.3g} MFLOP"


def _sent(sent: dict[str, int]) -> str:
    up, down, run = (words.size(sent[name]) for name in ("up_per_round", "down_per_round", "run"))
    return f"{up} up and {down} down a round, {run} in all"


def _time(seconds: dict[str, float] | None, measured: bool) -> str:
    if seconds is None:
        return "not measured (--no-measure)"
    how = "measured here" if measured else "on paper"
    return (
        f"{_long(seconds['round'])} a round, {_long(seconds['run'])} in all ({how}; evaluating "
        f"{_long(seconds['evaluating'])}, compiling {_long(seconds['compiling'])})"
    )


def _long(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
