"""One run, search or pilot in a process of its own, which kills itself at a moment that the parent chose.

Run: python -m tests.faults.child FOLDER CHANGES_JSON [STAGE SECONDS]
STAGE: startup, round, save, metrics, evaluation, adapter or report; SIGKILL comes SECONDS after it begins.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

STAGES = ("startup", "round", "save", "metrics", "evaluation", "adapter", "report")


def main() -> None:
    """Begins the run, or goes on with it."""
    path, changes = Path(sys.argv[1]), json.loads(sys.argv[2])
    kind = changes.pop("of", "run")
    stage, seconds = (sys.argv[3], float(sys.argv[4])) if len(sys.argv) > 3 else (None, 0.0)
    if stage == "startup":
        die_in(seconds)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import ffalora_jax as ffa
    from ffalora_jax import cli
    from ffalora_jax.mesh import make_cpu_devices
    from tests.tiny_runs import tiny

    cli.use_jax()
    make_cpu_devices(changes.get("mesh", "auto"))
    if stage in places(kind):
        arm(*places(kind)[stage], seconds)
    if kind == "sweep":
        ffa.sweep(tiny(**changes), SEARCH, out=path, observe=say)
    elif kind == "pilot":
        ffa.pilot(tiny(**changes), PILOT, out=path, observe=say)
    elif path.exists():
        ffa.resume(path, observe=say)
    else:
        ffa.simulate(tiny(**changes), out=path, observe=say)


SEARCH = {"over": {"optimizer.learning_rate": [0.3, 1.0], "method.rank": [2, 3]}, "seeds": 1}
PILOT = {"quick": True}


def places(kind: str = "run") -> dict[str, tuple]:
    """Returns where each stage begins: what holds the function, and its name."""
    from ffalora_jax import (
        engine,
        held_out,
        loop,
        pilot_page,
        record,
        run_folder,
        searching,
        together,
    )
    from ffalora_jax.checkpoint import Checkpoints

    rounds = {"run": (engine.Engine, "__call__")}
    report = {"run": (loop, "write_report"), "sweep": (searching, "write_tables")}
    return {
        "round": rounds.get(kind, (together.Batch, "rounds")),
        "save": (Checkpoints, "save"),
        "metrics": (run_folder.RunFolder, "append_metrics"),
        "evaluation": (held_out, "test"),
        "adapter": (record, "save_adapter"),
        "report": report.get(kind, (pilot_page, "write_page")),
    }


def arm(owner, name: str, seconds: float) -> None:
    """Lets the process die so many seconds after it first comes to a function."""
    before = getattr(owner, name)

    def and_die(*args, **kwargs):
        die_in(seconds)
        return before(*args, **kwargs)

    setattr(owner, name, and_die)


def die_in(seconds: float) -> None:
    """Kills this process, as a power cut would, after so many seconds."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


def say(event) -> None:
    """Prints what is no round."""
    if event.line is None:
        print(event.stage, flush=True)


if __name__ == "__main__":
    main()
