"""``ffalora run`` and ``ffalora resume``: train, show how it goes, say how it ended."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ffalora_jax.cli_privacy import parser_of
from ffalora_jax.errors import BUDGET, DONE, InputError


def run(arguments: list[str], use_jax: Callable[[], None]) -> int:
    """Trains; other processes, where there are any, follow."""
    from ffalora_jax import flags

    processes, settings = flags.take(arguments, "--processes", "auto, a number or cluster")
    trackers, settings = flags.take(settings, "--track", "tensorboard, wandb or mlflow")
    experiment, out = flags.read_run(settings)
    use_jax()
    from ffalora_jax import loop, simulation
    from ffalora_jax.mesh import make_cpu_devices
    from ffalora_jax.processes import is_first, num_processes, team

    processes = processes or "1"
    make_cpu_devices(experiment.mesh, num_processes(processes))
    with team(processes, ["run", *arguments]):
        if not is_first():
            loop.follow()
            return DONE
        with _watched(trackers) as observe:
            run = simulation.simulate(experiment, out=out, observe=observe)
    return _finish(run)


def resume(arguments: list[str], use_jax: Callable[[], None]) -> int:
    """Goes on with a run that stopped, or adds rounds."""
    if arguments and Path(arguments[0], "pilot.toml").is_file():
        from ffalora_jax import cli_pilot

        return cli_pilot.resume(arguments[0], arguments[1:], use_jax)
    parser = parser_of(
        "resume",
        "Go on with a run, to the same bits as if it had not stopped. A pilot goes on for its minutes again "
        "and takes the flags of `ffalora pilot`: --minutes, --language, --price-per-gb and so on; with "
        "--page nothing is run, its page alone is written anew.",
    )
    parser.add_argument("run", help="folder of the run, or of a search or a pilot")
    parser.add_argument("--rounds", type=int, default=0, help="rounds to add to those planned")
    parser.add_argument("--epsilon", type=float, help="a larger privacy budget, for added rounds")
    parser.add_argument(
        "--data.path", dest="data_path", help="where the data lies now, if it was moved"
    )
    parser.add_argument("--mesh", help="devices to use now, like clients=2 (default: as the run)")
    parser.add_argument(
        "--processes", default="1", help="compute in several: auto, a number or cluster"
    )
    parser.add_argument("--track", help="hand the figures to tensorboard, wandb, mlflow too")
    asked = parser.parse_args(arguments)
    if Path(asked.run, "sweep.toml").is_file():
        from ffalora_jax import cli_sweep

        if len(arguments) > 1:
            raise InputError(
                f"{asked.run!r} is a search, which goes on as it was asked: leave {arguments[1]} out. One of "
                f"its runs may be given rounds: ffalora resume {asked.run}/runs/TRIAL-REPEAT --rounds N."
            )
        return cli_sweep.resume(asked.run, use_jax)
    use_jax()
    from ffalora_jax import loop, simulation
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
        with _watched(asked.track) as observe:
            run = simulation.resume(
                asked.run,
                data,
                rounds=asked.rounds,
                epsilon=asked.epsilon,
                mesh=asked.mesh,
                observe=observe,
            )
    return _finish(run)


@contextlib.contextmanager
def _watched(trackers: str | None) -> Iterator[Any]:
    """Shows how it goes, and hands it to trackers, where any are named."""
    from ffalora_jax import console
    from ffalora_jax.trackers import all_of, tracking

    names = dict.fromkeys(name.strip() for name in (trackers or "").split(",") if name.strip())
    with tracking(*names) as track, console.progress() as show:
        yield all_of([track, show])


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
