"""The loop around the compiled rounds: evaluate, account, save, stop. One call, one run folder."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ffalora_jax import adapters as leaves
from ffalora_jax import rng
from ffalora_jax.adapter_file import save_adapter
from ffalora_jax.book import Book, largest_epsilons
from ffalora_jax.checkpoint import Checkpoints, Ledger
from ffalora_jax.cohort import data_hash
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.evaluate import evaluate, majority_accuracy, make_predictor
from ffalora_jax.interrupt import stop_flag
from ffalora_jax.loaded_run import Run, load_run
from ffalora_jax.prepare import Prepared, prepare
from ffalora_jax.report import write_report
from ffalora_jax.round import Keys, RoundState
from ffalora_jax.run_folder import RunFolder, environment, partition_table

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
    folder_path = Path(out) if out is not None else free_path(Path("runs", experiment.name))
    if folder_path.exists():
        RunFolder.create(folder_path, experiment)  # raises, before minutes are spent
    observe(Event("preparing data, model and noise"))
    run = prepare(experiment, data, model)
    if run.plan.rounds_within_budget == 0:
        raise InputError(
            f"One round alone would pass the budget of epsilon {experiment.privacy.budget}: raise "
            "privacy.epsilon or privacy.noise_multiplier."
        )
    folder = RunFolder.create(folder_path, experiment)
    given = experiment.noise_seed
    folder.write_json("environment.json", environment(run, given is not None))
    folder.write_json("partition.json", partition_table(run))
    ledger = Ledger(
        rounds_done=0,
        planned_rounds=experiment.rounds,
        budget=experiment.privacy.budget if run.plan.unit else None,
        noise_multipliers=tuple(client.noise_multiplier for client in run.plan.clients),
        epsilon=0.0 if run.plan.unit else None,
        noise_seed=rng.fresh_noise_seed() if given is None else given,
        experiment=folder.experiment_hash(),
        weights=run.loaded.weights_sha256,
        data=data_hash(run.data),
    )
    return _train(run, folder, ledger, run.state, observe)


def resume(
    path: str | Path,
    data: Any = None,
    *,
    model: nnx.Module | None = None,
    rounds: int = 0,
    epsilon: float | None = None,
    observe: Observer = lambda event: None,
) -> Run:
    """Continues a run after a stop, to the same bits; or adds ``rounds`` to it.

    The ledger is carried over: added rounds spend on top of what was spent, with the noise of the run.
    ``epsilon`` raises the budget, which a run that ended as planned has used up.

    Raises:
        InputError: no run there, no checkpoint, or one of another experiment or other weights.
    """
    folder = RunFolder.open(path)
    if not folder.checkpoints.is_dir():
        raise InputError(f"No checkpoint in {path}: start again with `ffalora run`.")
    checkpoints = Checkpoints(folder.checkpoints)
    try:
        ledger = checkpoints.newest()
        experiment = folder.experiment()
        if ledger is None:
            raise InputError(f"No checkpoint in {path}: start again with `ffalora run`.")
        if ledger.experiment != folder.experiment_hash():
            raise InputError(
                f"The checkpoint in {path} belongs to another experiment than its experiment.toml: put "
                "the file back as it was, or start a new run."
            )
        if rounds < 0:
            raise InputError(f"Expected --rounds >= 0, got {rounds}.")
        if epsilon is not None and not epsilon >= (ledger.epsilon or 0.0):
            raise InputError(
                f"Expected --epsilon >= {ledger.epsilon or 0.0:.3g}, which is spent already, got {epsilon}."
            )
        ledger = ledger._replace(
            planned_rounds=ledger.planned_rounds + rounds,
            budget=ledger.budget if epsilon is None else epsilon,
        )
        if ledger.rounds_done >= ledger.planned_rounds:
            observe(Event(f"the run has all its {ledger.planned_rounds} rounds: nothing to do"))
            return load_run(path, model)
        observe(Event("preparing data, model and noise"))
        planned = experiment.replace(
            rounds=ledger.planned_rounds,
            **{"privacy.epsilon": ledger.budget or experiment.privacy.epsilon},
        )
        run = prepare(planned, data, model, ledger.noise_multipliers)
        if run.loaded.weights_sha256 != ledger.weights:
            raise InputError(
                f"The backbone's weights have sha256 {run.loaded.weights_sha256[:12]}..., the run was made "
                f"with {ledger.weights[:12]}...: put the same checkpoint there."
            )
        if data_hash(run.data) != ledger.data:
            raise InputError(
                f"The training examples are not those that the run in {path} began with: its noise and its "
                "epsilon belong to them. Put the data back, or start a new run."
            )
        spent_up = run.plan.rounds_within_budget <= ledger.rounds_done
        if rounds and spent_up:
            raise InputError(
                f"No round can be added: the budget of epsilon {ledger.budget:g} is spent after "
                f"{ledger.rounds_done} rounds. Give a larger one: --rounds {rounds} --epsilon E."
            )
        state = checkpoints.restore(run.state, ledger)
    finally:
        checkpoints.close()
    return _train(run, folder, ledger, state, observe)


def _train(
    run: Prepared, folder: RunFolder, ledger: Ledger, state: RoundState, observe: Observer
) -> Run:
    """Runs the rounds that are left, in calls of a few seconds."""
    last = min(ledger.planned_rounds, run.plan.rounds_within_budget)
    given_seed = folder.read_json("environment.json")["reproducible"]
    if ledger.rounds_done >= last:  # resumed at its budget: no round may run
        return load_run(folder.path, run.loaded.model if run.loaded.own else None)
    epsilons = largest_epsilons(run, last)
    book = Book(run, folder, epsilons, given_seed, ledger)
    keys = Keys(rng.public_root(run.experiment.seed), rng.secret_root(ledger.noise_seed))
    predict = make_predictor(run.model.apply)
    checkpoints = Checkpoints(folder.checkpoints)
    at_once = run.settings.chunk
    observe(Event(f"compiling the round, {at_once} client{'s' * (at_once > 1)} at a time"))
    arguments = (keys, state, run.frozen, run.data, run.numbers, jnp.int32(1))
    # Compiled ahead of time: an executable cannot be traced again, whatever the later calls hold.
    rounds_call = run.rounds().lower(*arguments).compile()
    done, seconds_a_round = ledger.rounds_done, CALL_SECONDS
    with stop_flag() as stopped:
        observe(Event("rounds", done, ledger.planned_rounds, bytes_total=book.bytes_total))
        while done < last and not stopped.is_set():
            count = _rounds_now(run.experiment.evaluate_every, done, last, seconds_a_round)
            begin = time.perf_counter()
            state, infos = rounds_call(
                keys, state, run.frozen, run.data, run.numbers, jnp.int32(count)
            )
            jax.block_until_ready(state)
            seconds_a_round = (time.perf_counter() - begin) / count
            lines = book.lines(infos, done, count, seconds_a_round)
            done += count
            if done % run.experiment.evaluate_every == 0 or done == last:
                lines[-1] |= _validation(run, predict, state)
            if done == last:
                observe(Event("evaluating on the test part", done, ledger.planned_rounds))
                lines[-1] |= _test(run, predict, state)
            folder.append_metrics(lines)
            ledger = ledger._replace(rounds_done=done, epsilon=epsilons[done])
            checkpoints.save(state, ledger)
            book.write(done)
            sent = book.bytes_total - sum(line["bytes_up"] + line["bytes_down"] for line in lines)
            for line in lines:
                sent += line["bytes_up"] + line["bytes_down"]
                observe(Event("rounds", line["round_index"] + 1, ledger.planned_rounds, line, sent))
    checkpoints.close()
    _save_adapter(run, folder, state)
    book.write(done)
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


def _validation(run: Prepared, predict: Callable, state: RoundState) -> dict[str, Any]:
    most = run.experiment.max_validation
    parts = [
        _subset(rows, most, run.experiment.seed, k) for k, rows in enumerate(run.owners.validation)
    ]
    scores = evaluate(predict, run.frozen, state, run.tokens, run.dataset.labels, parts)
    if scores is None:
        return {}
    return {
        "accuracy": scores.accuracy,
        "accuracy_per_client": list(scores.per_client),
        "validation_loss": scores.loss,
    }


def _test(run: Prepared, predict: Callable, state: RoundState) -> dict[str, Any]:
    labels, owners = run.dataset.labels, run.owners
    scores = evaluate(predict, run.frozen, state, run.tokens, labels, owners.test)
    if scores is None:
        return {"test_accuracy": None, "majority_accuracy": None, "test_accuracy_per_client": None}
    return {
        "test_accuracy": scores.accuracy,
        "majority_accuracy": majority_accuracy(labels, owners.train, owners.test),
        "test_accuracy_per_client": dict(zip(owners.names, scores.per_client, strict=True)),
    }


def _subset(rows: np.ndarray, most: int, seed: int, client: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    draw = rng.numpy_rng(seed, rng.Purpose.VALIDATION, client)
    return np.sort(draw.choice(rows, most, replace=False))


def _save_adapter(run: Prepared, folder: RunFolder, state: RoundState) -> None:
    settings = run.experiment.method
    config = {
        "method": settings.name,
        "rank": settings.rank,
        "lora_alpha": settings.lora_alpha,
        "scaling": run.model.scaling,
        "layers": sorted(run.model.shapes),
        "class_names": list(run.dataset.class_names),
        "client_names": list(run.train_names),
        "weights_sha256": run.loaded.weights_sha256,
    }
    shared = leaves.merge(run.frozen.adapters, state.adapters)
    save_adapter(folder.path / "adapter", shared, state.personal, config)


def free_path(path: Path) -> Path:
    """Returns the path, or the first of path-2, path-3, ... that does not exist."""
    numbered: Sequence[Path] = [
        path,
        *(path.with_name(f"{path.name}-{n}") for n in range(2, 10_000)),
    ]
    return next(candidate for candidate in numbered if not candidate.exists())
