"""The loop around the compiled rounds: compute, evaluate, account, save, stop.

Of several processes the first one leads (``train``) and the others follow (``follow``): all of them compute
and evaluate, the leader alone decides, reads and writes.
"""

import dataclasses
import json
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ffalora_jax import rng
from ffalora_jax.checkpoint import Ledger
from ffalora_jax.config import Experiment
from ffalora_jax.engine import Engine
from ffalora_jax.evaluate import make_predictor
from ffalora_jax.experiment_file import from_table, to_toml
from ffalora_jax.held_out import figures
from ffalora_jax.interrupt import stop_flag
from ffalora_jax.loaded_run import Run, load_run
from ffalora_jax.mesh import num_shards, replicated
from ffalora_jax.prepare import Prepared, prepare
from ffalora_jax.processes import from_first, text_from_first
from ffalora_jax.record import Record
from ffalora_jax.report import write_report
from ffalora_jax.rng import Keys
from ffalora_jax.round import RoundInfo, RoundState
from ffalora_jax.run_folder import RunFolder

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
    path: Path | None = None
    """The run's folder, when its rounds begin."""


Observer = Callable[[Event], None]
OnRound = Callable[[RoundState, dict[str, Any]], None]
"""(state after a round, the round's line of metrics.jsonl) -> nothing."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came; the rounds of the call that ran are saved."""

    def __init__(self, path: Path, rounds_done: int):
        super().__init__(f"stopped after round {rounds_done}; go on with `ffalora resume {path}`")
        self.path = path


class Span(NamedTuple):
    """Which rounds are made, under which noise seed."""

    done: int
    last: int
    noise_seed: int


def call_in(experiment: Experiment | None, multipliers: tuple[float, ...] | None = None) -> None:
    """Tells the processes that follow what is prepared; None: there is nothing to do."""
    order = {} if experiment is None else {"experiment": to_toml(experiment)}
    text_from_first(json.dumps(order | {"multipliers": multipliers}))


def compiled(run: Prepared, observe: Observer) -> Engine:
    """Compiles the rounds, saying how they are computed."""
    at_once, shards = run.settings.chunk, num_shards(run.mesh)
    how = f"{at_once} client{'s' * (at_once > 1)} at a time"
    if shards > 1:
        how += f" on each of {shards} {'devices' if jax.process_count() == 1 else 'processes'}"
    observe(Event(f"compiling the round, {how}"))
    return Engine(run, lambda text: observe(Event(text)))


def train(
    run: Prepared,
    folder: RunFolder,
    ledger: Ledger,
    state: RoundState,
    epsilons: list[float | None],
    engine: Engine | None,
    observe: Observer,
    on_round: OnRound | None = None,
) -> Run:
    """Runs the rounds that are left, in calls of a few seconds, and writes what follows from them."""
    last = min(ledger.planned_rounds, run.plan.rounds_within_budget)
    span = Span(ledger.rounds_done, last, ledger.noise_seed)
    record = Record(run, folder, ledger, epsilons)
    for text in record.book.warnings():
        observe(Event(f"warning: {text}"))
    computation = _Computation(run, engine, span, state)
    seconds_a_round = CALL_SECONDS
    record.begin(state)  # so that a stop in the first call can be resumed
    planned = ledger.planned_rounds
    with stop_flag() as stopped:
        sent = record.book.bytes_total
        observe(Event("rounds", span.done, planned, bytes_total=sent, path=folder.path))
        while record.done < last and not stopped.is_set():
            count = rounds_now(run.experiment.evaluate_every, record.done, last, seconds_a_round)
            count = count if on_round is None else 1  # the state is known where a call ends
            begin = time.perf_counter()
            infos = computation.rounds(agreed(count))
            if jax.debug_nans.value:
                stop_at_nans(run, infos, record.done)
            seconds_a_round = (time.perf_counter() - begin) / count
            lines = record.lines(infos, count, seconds_a_round)
            if record.done == last:
                observe(Event("evaluating on the test part", last, planned))
            record.save(lines, computation.figures(), computation.state)
            if on_round is not None:
                on_round(computation.state, lines[-1])
            sent = record.book.bytes_total - sum(x["bytes_up"] + x["bytes_down"] for x in lines)
            for line in lines:
                sent += line["bytes_up"] + line["bytes_down"]
                observe(Event("rounds", line["round_index"] + 1, planned, line, sent))
    if span.done >= last and record.done:  # the last round was saved, but not all that follows
        record.book.complete(computation.figures())
    agreed(0)
    record.end(computation.state)
    finished = load_run(folder.path, run.loaded.model if run.loaded.own else None)
    if finished.metrics:
        write_report([finished], folder.report)
    if record.done < last:
        raise Interrupted(folder.path, record.done)
    return finished


def stop_at_nans(run: Prepared, infos: RoundInfo, done: int) -> None:
    """Names the first round and client with a value that is not finite (``--debug-nans``).

    Raises:
        FloatingPointError: there is one. Without the option such examples count as zero and are counted.
    """
    clip = jax.tree.map(np.asarray, infos.facts.clip)
    broken = (clip.num_broken > 0) | ~np.isfinite(infos.facts.update_norm)
    found = np.argwhere(broken & np.asarray(infos.took_part))
    if not len(found):
        return
    index, slot = found[0]
    name = run.train_names[int(infos.clients[index][slot])]
    raise FloatingPointError(
        f"in round {done + index + 1}, client {name!r}: {clip.num_broken[index, slot]:.0f} of "
        f"{clip.num_real[index, slot]:.0f} drawn examples gave a loss or gradient that is not finite, and it "
        f"moved by {infos.facts.update_norm[index, slot]:g}. Lower "
        "optimizer.learning_rate, or look at that client's data; the rounds before are saved."
    )


def follow(data: Any = None, model: nnx.Module | None = None) -> None:
    """Computes this process's clients of a run that the first process leads, to its end.

    Args:
        data: as in ``simulate``.
        model: as in ``simulate``.
    """
    order = json.loads(text_from_first())
    if "experiment" not in order:
        return
    run = prepare(from_table(tomllib.loads(order["experiment"])), data, model, order["multipliers"])
    computation = _Computation(run, Engine(run), Span(0, 0, 0), run.state)
    if computation.done >= computation.span.last:
        computation.figures()
    while count := agreed():
        computation.rounds(count)
        computation.figures()


def agreed(count: int = 0) -> int:
    """Returns how many rounds the first process says to make now; 0 ends the run."""
    return int(from_first(np.int32(count)))


class _Computation:
    """What all processes do alike; of what they give to the others only the first one's counts."""

    def __init__(self, run: Prepared, engine: Engine | None, span: Span, state: RoundState):
        self.run, self.engine = run, engine
        self.span = Span(*json.loads(text_from_first(json.dumps(span))))
        self.state = _everywhere(run, state)
        self.done = self.span.done
        self.keys = Keys(
            rng.public_root(run.experiment.seed), rng.secret_root(self.span.noise_seed)
        )
        self._predict = make_predictor(run.model, run.task, run.mesh)

    def rounds(self, count: int) -> RoundInfo:
        """Makes so many rounds."""
        assert self.engine is not None, "compiled, where rounds are left"
        self.state, infos = self.engine(self.keys, self.state, count)
        jax.block_until_ready(self.state)
        self.done += count
        return infos

    def figures(self) -> dict[str, Any]:
        """Scores what is due after these rounds."""
        is_due = self.done % self.run.experiment.evaluate_every == 0
        is_last = self.done >= self.span.last
        return figures(self.run, self._predict, self.state, is_due, is_last)


def _everywhere(run: Prepared, state: RoundState) -> RoundState:
    """Returns the first process's state, where all of them need it."""
    state = from_first(jax.tree.map(np.asarray, state))
    whole = replicated(run.mesh, jax.tree.map(jnp.asarray, state))
    return dataclasses.replace(whole, personal=state.personal) if run.settings.by_slot else whole


def rounds_now(evaluate_every: int, done: int, last: int, seconds_a_round: float) -> int:
    """Returns how many rounds a call makes: up to the next evaluation, and for a few seconds."""
    until_evaluation = evaluate_every - done % evaluate_every
    affordable = max(1, int(CALL_SECONDS / max(seconds_a_round, 1e-4)))
    return min(until_evaluation, last - done, affordable)
