"""``ffalora audit``: what a mechanism gives away at least, beside what it claims."""

import json
import sys
from collections.abc import Callable
from typing import Any

from ffalora_jax import flags
from ffalora_jax.cli_plan import whole_number
from ffalora_jax.errors import InputError

HELP = """usage: ffalora audit [EXPERIMENT.toml] [--canaries N] [--confidence C] [--json] [--SETTING VALUE]

Runs the experiment's rounds with canaries in them (examples, or under dp_fedavg clients, whose gradients are
known), guesses from the outcome which of them were there, and bounds from below the epsilon that was
spent. A bound above the claim proves an error; one below proves nothing. Exit code 1 if the claim falls.
Needs the extra `audit`. Start small: --model.name tiny --data.name synthetic --rounds 1 --local_steps 1

  --canaries N     at most so many (default 1000); no more than the largest client has examples
  --confidence C   with which the bound holds (default 0.95)
  --json           one JSON object on standard output

Every setting of `ffalora run --help` can be given as well.
"""


def run(arguments: list[str], use_jax: Callable[[], None]) -> int:
    """Audits and prints.

    Args:
        arguments: of the command.
        use_jax: prepares JAX, once the arguments are read.
    """
    canaries, rest = flags.take(arguments, "--canaries", "a number")
    confidence, rest = flags.take(rest, "--confidence", "a share, like 0.95")
    as_json, rest = flags.switch(rest, "--json")
    experiment = flags.read_only("audit", rest)
    count = whole_number("--canaries", canaries) or 1000
    sure = _number("--confidence", confidence, 0.95)
    use_jax()
    from ffalora_jax.audit import audit
    from ffalora_jax.mesh import make_cpu_devices

    make_cpu_devices(experiment.mesh)
    print("running the rounds with canaries in them", file=sys.stderr)
    found = audit(experiment, canaries=count, confidence=sure)
    if as_json:
        print(json.dumps(found._asdict() | {"holds": found.holds}, indent=2))
    else:
        print(
            f"claimed   epsilon {found.claimed:.3g} at delta {found.delta:g} for one {found.unit}, "
            f"{found.mechanism}, {found.rounds} rounds"
        )
        print(
            f"measured  epsilon {found.lower_bound:.3g} at least, with {100 * found.confidence:g} % "
            f"confidence, from {found.canaries} canaries of which {found.inserted} were there"
        )
        print(f"pairs of canaries told apart: {100 * found.auroc:.1f} % (50 % is chance)")
        print(_said(found))
    return 0 if found.holds else 1


def _said(found: Any) -> str:
    if not found.holds:
        return "the claim is WRONG: more was given away"
    if found.ceiling <= found.claimed:
        return (
            f"the claim could not fall: {found.canaries} canaries show epsilon {found.ceiling:.3g} at most. "
            "Take more canaries, or a smaller claim"
        )
    return "the claim stands"


def _number(name: str, text: str | None, default: float) -> float:
    try:
        return default if text is None else float(text)
    except ValueError:
        raise InputError(f"Expected a number for {name}, got {text!r}.") from None
