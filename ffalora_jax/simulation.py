"""A run from its settings or its folder: all checked and compiled, then the loop. One call, one folder."""

import re
from pathlib import Path
from typing import Any

from flax import nnx

from ffalora_jax import run_log
from ffalora_jax.adapter_file import FACTS
from ffalora_jax.book import largest_epsilons
from ffalora_jax.checkpoint import Checkpoints, Ledger, data_hash
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.loaded_run import Run, load_run
from ffalora_jax.loop import Event, Observer, OnRound, call_in, compiled, train
from ffalora_jax.prepare import Prepared, prepare
from ffalora_jax.record import new_folder
from ffalora_jax.run_folder import RunFolder, check_free


def simulate(
    experiment: Experiment,
    data: Any = None,
    *,
    model: nnx.Module | None = None,
    out: str | Path | None = None,
    observe: Observer = lambda event: None,
    on_round: OnRound | None = None,
) -> Run:
    """Runs an experiment and leaves a run folder.

    Args:
        experiment: the settings.
        data: examples in place of ``experiment.data``: anything ``as_dataset`` takes.
        model: an NNX model of your own in place of ``experiment.model.name``.
        out: folder to make; left out, ``runs/NAME``, numbered if that exists.
        observe: is told every stage and round.
        on_round: is given the state after each round, and its figures; every round is then a call of its own.

    Returns:
        The run, with its figures and ``predict``.

    Raises:
        InputError: something given cannot be used; nothing is written then.
        Interrupted: Ctrl-C; what was done is saved.
    """
    observe = run_log.told(observe)
    folder_path = Path(out) if out is not None else free_path(folder_of(experiment.name))
    check_free(folder_path)  # before minutes are spent
    observe(Event("preparing data, model and noise"))
    call_in(experiment)
    run = prepare(experiment, data, model)
    check_affordable(run)
    # All that can fail comes before the folder: a refusal leaves nothing behind.
    epsilons = largest_epsilons(run, min(experiment.rounds, run.plan.rounds_within_budget))
    engine = compiled(run, observe)
    folder, ledger = new_folder(folder_path, engine.run, engine.compiled_bytes)
    with folder.held(), run_log.kept(folder.path):
        return train(run, folder, ledger, run.state, epsilons, engine, observe, on_round)


def resume(
    path: str | Path,
    data: Any = None,
    *,
    model: nnx.Module | None = None,
    rounds: int = 0,
    epsilon: float | None = None,
    mesh: str | None = None,
    observe: Observer = lambda event: None,
) -> Run:
    """Continues a run after a stop, to the same bits; or adds ``rounds`` to it.

    The ledger is carried over: added rounds spend on top of what was spent, with the noise of the run.
    ``epsilon`` raises the budget, which a run that ended as planned has used up. ``mesh`` says which
    devices to use now: with another number of them the result is the same up to rounding.

    Raises:
        InputError: no run there, another process at it, no checkpoint, or one of another experiment or
            other weights.
    """
    folder = RunFolder.open(path)
    with folder.held():
        return _resume(folder, data, model, rounds, epsilon, mesh, run_log.told(observe))


def _resume(
    folder: RunFolder,
    data: Any,
    model: nnx.Module | None,
    rounds: int,
    epsilon: float | None,
    mesh: str | None,
    observe: Observer,
) -> Run:
    path = folder.path
    if not folder.checkpoints.is_dir():
        raise InputError(_nothing_saved(path))
    checkpoints = Checkpoints(folder.checkpoints)
    try:
        aside: list[str] = []
        before = checkpoints.newest(aside.append, len(folder.metrics()))
        for text in aside:
            observe(Event(f"warning: {text}"))
        if before is None:
            raise InputError(_nothing_saved(path))
        if before.experiment != folder.experiment_hash():
            raise InputError(
                f"The checkpoint in {path} belongs to another experiment than its experiment.toml: put "
                "the file back as it was, or start a new run."
            )
        # Rounds that were given out are planned, also where an older checkpoint does not know of them.
        ledger = _extended(before, rounds, epsilon)
        planned = max(ledger.planned_rounds, folder.released())
        ledger = ledger._replace(planned_rounds=planned)
        if ledger == before and _is_complete(folder, ledger):
            call_in(None)
            observe(Event(f"the run has all its {ledger.rounds_done} rounds: nothing to do"))
            return load_run(path, model)
        observe(Event("preparing data, model and noise"))
        run = _prepared_again(folder, ledger, data, model, mesh)
        if rounds and run.plan.rounds_within_budget <= ledger.rounds_done:
            raise InputError(
                f"No round can be added: the budget of epsilon {ledger.budget:g} is spent after "
                f"{ledger.rounds_done} rounds. Give a larger one: --rounds {rounds} --epsilon E."
            )
        state = checkpoints.restore(run.state, ledger)
    finally:
        checkpoints.close()
    last = min(ledger.planned_rounds, run.plan.rounds_within_budget)
    epsilons = largest_epsilons(run, max(last, ledger.rounds_done))
    engine = compiled(run, observe) if ledger.rounds_done < last else None
    folder.tidy()
    with run_log.kept(folder.path, aside):
        return train(run, folder, ledger, state, epsilons, engine, observe)


def check_affordable(run: Prepared) -> None:
    """Raises InputError where not even one round keeps to the budget."""
    if run.plan.rounds_within_budget == 0:
        raise InputError(
            f"One round alone would pass the budget of epsilon {run.experiment.privacy.budget}: raise "
            "privacy.epsilon or privacy.noise_multiplier."
        )


def _nothing_saved(path: Path) -> str:
    if list(path.glob("checkpoints/broken-*")):
        return f"No checkpoint in {path} is whole: put the folder back from a copy, or start a new run."
    return (
        f"No checkpoint in {path}: it stopped before the first round. Remove the folder, and start again "
        "with `ffalora run`."
    )


def _extended(ledger: Ledger, rounds: int, epsilon: float | None) -> Ledger:
    """Returns the ledger with rounds added and the budget raised."""
    if rounds < 0:
        raise InputError(f"Expected --rounds >= 0, got {rounds}.")
    if epsilon is not None:
        if ledger.epsilon is None:
            raise InputError("This run promises no privacy: --epsilon has nothing to raise.")
        least, what = ledger.epsilon, "is spent already"
        if ledger.budget is not None and ledger.budget > least:
            least, what = (
                ledger.budget,
                "is the run's budget; what is spent already cannot be taken back",
            )
        if not epsilon >= least:
            raise InputError(f"Expected --epsilon >= {least:.4g}, which {what}, got {epsilon}.")
    return ledger._replace(
        planned_rounds=ledger.planned_rounds + rounds,
        budget=ledger.budget if epsilon is None else epsilon,
    )


def _is_complete(folder: RunFolder, ledger: Ledger) -> bool:
    """Whether the last round was made, and everything that follows from it stands in the folder."""
    privacy, metrics = folder.path / "privacy.json", folder.metrics()
    if not privacy.is_file() or not metrics:
        return False
    facts = folder.read_json("privacy.json")
    ended = ledger.rounds_done >= ledger.planned_rounds or facts["stopped_at_budget"]
    in_step = facts["rounds"] == len(metrics) == ledger.rounds_done
    has_adapter = (folder.path / "adapter" / FACTS).is_file()
    return ended and in_step and "test_accuracy" in metrics[-1] and has_adapter


def _prepared_again(
    folder: RunFolder, ledger: Ledger, data: Any, model: nnx.Module | None, mesh: str | None
) -> Prepared:
    """Prepares the run of a folder, and makes sure that it is the same one."""
    experiment = folder.experiment()
    planned = experiment.replace(
        rounds=ledger.planned_rounds,
        schedule_rounds=experiment.schedule_rounds or experiment.rounds,
        mesh=mesh or experiment.mesh,
        **{"privacy.epsilon": ledger.budget or experiment.privacy.epsilon},
    )
    call_in(planned, ledger.noise_multipliers)
    run = prepare(planned, data, model, ledger.noise_multipliers)
    check_unchanged(run, ledger, folder.path)
    return run


def check_unchanged(run: Prepared, ledger: Ledger, path: Path) -> None:
    """Raises InputError unless weights and examples are those that a run began with."""
    if run.loaded.fingerprint != ledger.weights:
        raise InputError(
            f"The backbone (weights and config.json) has sha256 {run.loaded.fingerprint[:12]}..., the run "
            f"was made with {ledger.weights[:12]}...: put the same checkpoint there."
        )
    if data_hash(run.data) != ledger.data:
        raise InputError(
            f"The training examples are not those that the run in {path} began with: its noise and "
            "its epsilon belong to them. Put the data back, or start a new run."
        )


def folder_of(name: str, above: str = "runs") -> Path:
    """Returns where what has that name goes: always a folder right under runs/, sweeps/ or pilots/."""
    return Path(above, re.sub(r"[/\\\0]+", "-", name).strip(". ") or "run")


def free_path(path: Path) -> Path:
    """Returns the path, or the first of path-2, path-3, ... that does not exist."""
    others = (path.with_name(f"{path.name}-{n}") for n in range(2, 10_000))
    return next(candidate for candidate in (path, *others) if not candidate.exists())
