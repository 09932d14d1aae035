"""``ffalora check``: what is wrong with an experiment, or promises less than it seems to, before it runs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from ffalora_jax import flags
from ffalora_jax.errors import InputError

HELP = """usage: ffalora check EXPERIMENT.toml|RUN [--json] [--SETTING VALUE ...]

Prepares the experiment (its data, model and noise, nothing is trained) and says what a run would not:
settings and data that give no error and are still wrong, each with where that is written about. A run's
folder is checked with its figures. Exit code 2 if it cannot run at all, else 0.

  --json          one JSON object on standard output

Every setting of `ffalora run --help` can be given as well.
"""


def run(arguments: list[str], use_jax: Callable[[], None]) -> int:
    """Prepares the experiment, applies the rules, prints.

    Args:
        arguments: of the command.
        use_jax: prepares JAX, once the arguments are read.
    """
    as_json, rest = flags.switch(arguments, "--json")
    shares: list[float | None] = []
    if rest and Path(rest[0]).is_dir():
        from ffalora_jax.run_folder import RunFolder

        folder = RunFolder.open(rest[0])
        experiment = folder.experiment()
        shares = [line["clipped_share"] for line in folder.metrics()]
        if rest[1:]:
            raise InputError(f"A run's settings stand in its folder: leave {rest[1]!r} out.")
    else:
        experiment = flags.read_only("check", rest)
    use_jax()
    from ffalora_jax import lint
    from ffalora_jax.mesh import make_cpu_devices
    from ffalora_jax.prepare import prepare

    make_cpu_devices(experiment.mesh)
    print("preparing data, model and noise", file=sys.stderr)
    ready = prepare(experiment)
    found = lint.before(ready) + lint.after(ready, shares)
    if as_json:
        print(json.dumps([finding._asdict() for finding in found], indent=2))
        return 0
    for finding in found:
        print(f"{finding.level} {finding.rule}: {finding.text} ({finding.reference})")
    if not found:
        print("nothing to say: it can run, and promises what it seems to")
    return 0
