"""The loop around the compiled rounds: evaluate, account, save, stop. One call, one run folder."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

from ffalora_jax import rng
from ffalora_jax.adapter_file import FACTS, save_adapter
from ffalora_jax.book import Book, largest_epsilons
from ffalora_jax.checkpoint import Checkpoints, Ledger
from ffalora_jax.cohort import data_hash
from ffalora_jax.config import Experiment
from ffalora_jax.engine import Engine
from ffalora_jax.errors import InputError
from ffalora_jax.evaluate import make_predictor
from ffalora_jax.held_out import test, validation
from ffalora_jax.interrupt import stop_flag
from ffalora_jax.loaded_run import Run, load_run
from ffalora_jax.mesh import num_shards
from ffalora_jax.prepare import Prepared, prepare
from ffalora_jax.report import write_report
from ffalora_jax.round import Keys, RoundState
from ffalora_jax.run_facts import environment, partition_table
from ffalora_jax.run_folder import RunFolder, check_free

CALL_SECONDS = 4.0
"""A call of rounds aims at this length, so that Ctrl-C takes effect within seconds."""


class Event(NamedTuple):
    """What an observer hears: a stage that begins, or a round that ended."""

    stage: str
    rounds_done: int = 0
    rounds: int = 0
    line: dict[str, Any] | None = None
    """The round's line of metrics.jsonl."""
    bytes_total: int = 0


Observer = Callable[[Event], None]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came; the rounds of the call that ran are saved."""

    def __init__(self, path: Path, rounds_done: int):
        super().__init__(f"stopped after round {rounds_done}; go on with `ffalora resume {path}`")
        self.path = path


def simulate(
    experiment: Experiment,
    data: Any = None,
    *,
    model: nnx.Module | None = None,
    out: str | Path | None = None,
    observe: Observer = lambda event: None,
) -> Run:
    """Runs an experiment and leaves a run folder.

    Args:
        experiment: the settings.
        data: examples in place of ``experiment.data``: anything ``as_dataset`` takes.
        model: an NNX model of your own in place of ``experiment.model.name``.
        out: folder to make; left out, ``runs/NAME``, numbered if that exists.
        observe: is told every stage and round.

    Returns:
        The run: figures, and ``predict``.

    Raises:
        InputError: something given cannot be used; nothing is written then.
        Interrupted: Ctrl-C; what was done is saved.
    """
    folder_path = Path(out) if out is not None else free_path(folder_of(experiment.name))
    check_free(folder_path)  # before minutes are spent
    observe(Event("preparing data, model and noise"))
    run = prepare(experiment, data, model)
    if run.plan.rounds_within_budget == 0:
        raise InputError(
            f"One round alone would pass the budget of epsilon {experiment.privacy.budget}: raise "
            "privacy.epsilon or privacy.noise_multiplier."
        )
    given = experiment.noise_seed
    noise_seed = rng.fresh_noise_seed() if given is None else given
    # All that can fail comes before the folder: a refusal leaves nothing behind.
    epsilons = largest_epsilons(run, min(experiment.rounds, run.plan.rounds_within_budget))
    rounds_call = _compile(run, observe)
    folder = RunFolder.create(folder_path, experiment)
    folder.write_json("environment.json", environment(run, given is not None))
    folder.write_json("partition.json", partition_table(run))
    ledger = Ledger(
        rounds_done=0,
        planned_rounds=experiment.rounds,
        budget=experiment.privacy.budget if run.plan.unit else None,
        noise_multipliers=tuple(client.noise_multiplier for client in run.plan.clients),
        epsilon=0.0 if run.plan.unit else None,
        noise_seed=noise_seed,
        experiment=folder.experiment_hash(),
        weights=run.loaded.fingerprint,
        data=data_hash(run.data),
    )
    return _train(run, folder, ledger, run.state, epsilons, rounds_call, observe)


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
        InputError: no run there, no checkpoint, or one of another experiment or other weights.
    """
    folder = RunFolder.open(path)
    if not folder.checkpoints.is_dir():
        raise InputError(f"No checkpoint in {path}: start again with `ffalora run`.")
    checkpoints = Checkpoints(folder.checkpoints)
    try:
        before = checkpoints.newest()
        if before is None:
            raise InputError(f"No checkpoint in {path}: start again with `ffalora run`.")
        if before.experiment != folder.experiment_hash():
            raise InputError(
                f"The checkpoint in {path} belongs to another experiment than its experiment.toml: put "
                "the file back as it was, or start a new run."
            )
        ledger = _extended(before, rounds, epsilon)
        if ledger == before and _is_complete(folder, ledger):
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
    rounds_call = _compile(run, observe) if ledger.rounds_done < last else None
    return _train(run, folder, ledger, state, epsilons, rounds_call, observe)


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
        mesh=mesh or experiment.mesh,
        **{"privacy.epsilon": ledger.budget or experiment.privacy.epsilon},
    )
    run = prepare(planned, data, model, ledger.noise_multipliers)
    if run.loaded.fingerprint != ledger.weights:
        raise InputError(
            f"The backbone (weights and config.json) has sha256 {run.loaded.fingerprint[:12]}..., the run "
            f"was made with {ledger.weights[:12]}...: put the same checkpoint there."
        )
    if data_hash(run.data) != ledger.data:
        raise InputError(
            f"The training examples are not those that the run in {folder.path} began with: its noise and "
            "its epsilon belong to them. Put the data back, or start a new run."
        )
    return run


def _compile(run: Prepared, observe: Observer) -> Engine:
    """Compiles the rounds, saying how they are computed."""
    at_once, shards = run.settings.chunk, num_shards(run.mesh)
    how = f"{at_once} client{'s' * (at_once > 1)} at a time"
    if shards > 1:
        how += f" on each of {shards} devices"
    observe(Event(f"compiling the round, {how}"))
    return Engine(run)


def _train(
    run: Prepared,
    folder: RunFolder,
    ledger: Ledger,
    state: RoundState,
    epsilons: list[float | None],
    rounds_call: Engine | None,
    observe: Observer,
) -> Run:
    """Runs the rounds that are left, in calls of a few seconds, and writes what follows from them."""
    last = min(ledger.planned_rounds, run.plan.rounds_within_budget)
    book = Book(run, folder, epsilons, ledger)
    keys = Keys(rng.public_root(run.experiment.seed), rng.secret_root(ledger.noise_seed))
    predict = make_predictor(run.model, run.task, run.mesh)
    checkpoints = Checkpoints(folder.checkpoints)
    done, seconds_a_round = ledger.rounds_done, CALL_SECONDS
    if done == 0:
        checkpoints.save(state, ledger)  # so that a stop in the first call can be resumed
    with stop_flag() as stopped:
        observe(Event("rounds", done, ledger.planned_rounds, bytes_total=book.bytes_total))
        while rounds_call is not None and done < last and not stopped.is_set():
            count = _rounds_now(run.experiment.evaluate_every, done, last, seconds_a_round)
            begin = time.perf_counter()
            state, infos = rounds_call(keys, state, count)
            jax.block_until_ready(state)
            seconds_a_round = (time.perf_counter() - begin) / count
            lines = book.lines(infos, done, count, seconds_a_round)
            done += count
            if done % run.experiment.evaluate_every == 0 or done == last:
                lines[-1] |= validation(run, predict, state)
            if done == last:
                observe(Event("evaluating on the test part", done, ledger.planned_rounds))
                lines[-1] |= test(run, predict, state)
            # What was spent is written first: after a crash it may say too much, never too little.
            book.append(lines)
            book.write(done)
            ledger = ledger._replace(rounds_done=done, epsilon=book.spent(done))
            checkpoints.save(state, ledger)
            sent = book.bytes_total - sum(line["bytes_up"] + line["bytes_down"] for line in lines)
            for line in lines:
                sent += line["bytes_up"] + line["bytes_down"]
                observe(Event("rounds", line["round_index"] + 1, ledger.planned_rounds, line, sent))
    checkpoints.close()
    if rounds_call is None and done:  # the last round was saved, but not all that follows from it
        book.complete(test(run, predict, state))
    book.write(done)
    save_adapter(folder.path / "adapter", run, state)
    finished = load_run(folder.path, run.loaded.model if run.loaded.own else None)
    if finished.metrics:
        write_report([finished], folder.report)
    if done < last:
        raise Interrupted(folder.path, done)
    return finished


def _rounds_now(evaluate_every: int, done: int, last: int, seconds_a_round: float) -> int:
    until_evaluation = evaluate_every - done % evaluate_every
    affordable = max(1, int(CALL_SECONDS / max(seconds_a_round, 1e-4)))
    return min(until_evaluation, last - done, affordable)


def folder_of(name: str) -> Path:
    """Returns where a run of that name goes: always a folder right under runs/."""
    return Path("runs", re.sub(r"[/\\\0]+", "-", name).strip(". ") or "run")


def free_path(path: Path) -> Path:
    """Returns the path, or the first of path-2, path-3, ... that does not exist."""
    others = (path.with_name(f"{path.name}-{n}") for n in range(2, 10_000))
    return next(candidate for candidate in (path, *others) if not candidate.exists())
