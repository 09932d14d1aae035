"""Many runs, each with its folder, on as few compiled programs as there are kinds of them."""

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from ffalora_jax import rng
from ffalora_jax.adapter_file import FACTS
from ffalora_jax.book import largest_epsilons
from ffalora_jax.checkpoint import Checkpoints, Ledger
from ffalora_jax.config import Experiment
from ffalora_jax.engine import Engine
from ffalora_jax.errors import InputError
from ffalora_jax.evaluate import Predict, make_predictor
from ffalora_jax.held_out import figures, scored_at_all
from ffalora_jax.interrupt import stop_flag
from ffalora_jax.loader import Loader
from ffalora_jax.loop import rounds_now
from ffalora_jax.prefix import Seen
from ffalora_jax.prepare import Prepared, prepare
from ffalora_jax.record import Record, new_folder
from ffalora_jax.rng import Keys
from ffalora_jax.round import RoundInfo, RoundState
from ffalora_jax.run_folder import RunFolder, experiment_text, locked
from ffalora_jax.simulation import check_affordable, check_unchanged
from ffalora_jax.together import Given, Program, given, kind_of, side_by_side

SAVE_SECONDS = 30.0
"""Between checkpoints: what is lost by a crash at most, beside the call that runs."""


class Member(NamedTuple):
    """One run of many."""

    experiment: Experiment
    path: Path
    noise_seed: int


class _Ready(NamedTuple):
    """A run that is about to make rounds."""

    member: Member
    run: Prepared
    program: Program
    given: Given
    ledger: Ledger | None
    """None of a run that begins."""
    state: RoundState
    last: int
    """The round at which it stops now."""

    @property
    def planned(self) -> int:
        """Rounds that it has in the end."""
        return min(self.run.experiment.rounds, self.run.plan.rounds_within_budget)


class ManyRuns:
    """Makes rounds of many runs; what they share is loaded and compiled once."""

    def __init__(
        self,
        data: Any = None,
        model: nnx.Module | None = None,
        say: Callable[[int, str], None] = lambda ended, doing: None,
    ):
        self.loader, self._say = Loader(data, model), say
        self._programs: dict[str, Program] = {}
        self._predictors: dict[int, Predict] = {}

    def advance(self, members: Sequence[Member], rounds: int) -> list[str | None]:
        """Brings every run to so many rounds, from wherever it stands.

        Returns:
            Why a run cannot be made; None of the others.

        Raises:
            KeyboardInterrupt: Ctrl-C; what was done is saved.
        """
        ready, refused = [], []
        for member in members:
            why = None
            _check_whose(member)
            if not _has(member, rounds):
                try:
                    ready.append(self._ready(member, rounds))
                except InputError as error:
                    why = " ".join(str(error).split())
            refused.append(why)
        self._say(len(members) - len(ready), "")
        with stop_flag() as stopped:
            for batch in _batches(ready):
                self._run(batch, stopped.is_set)
                if stopped.is_set():
                    raise KeyboardInterrupt
                self._say(len(batch), "")
        return refused

    def _ready(self, member: Member, rounds: int) -> _Ready:
        ledger, path = None, member.path
        if path.exists():
            ledger = _saved(path)
            if ledger is None:  # killed before anything was saved: again, with the same noise
                _remove(path)
        multipliers = None if ledger is None else ledger.noise_multipliers
        run = prepare(member.experiment, multipliers=multipliers, loader=self.loader)
        check_affordable(run)
        program = self._programs.setdefault(kind_of(run), Program(run))
        numbers = given(run, program.first)
        # Its own copies of what it shares with the first one are let go.
        data = numbers.data._replace(members=run.data.members, sizes=run.data.sizes)
        frozen = run.frozen._replace(backbone=numbers.frozen.backbone)
        run, state = run._replace(data=data, frozen=frozen), run.state
        if ledger is not None:
            check_unchanged(run, ledger, path)
            checkpoints = Checkpoints(RunFolder(path).checkpoints)
            state = checkpoints.restore(run.state, ledger)
            checkpoints.close()
        last = min(rounds, run.plan.rounds_within_budget)
        return _Ready(member, run, program, numbers, ledger, state, last)

    def _run(self, batch: list[_Ready], stopped: Callable[[], bool]) -> None:
        """Makes the rounds of runs in lockstep."""
        first = batch[0]
        program, last = first.program, first.last
        records = [_record(one) for one in batch]
        keys = [
            Keys(
                rng.public_root(one.run.experiment.seed), rng.secret_root(record.ledger.noise_seed)
            )
            for one, record in zip(batch, records, strict=True)
        ]
        states = [one.state for one in batch]
        compiles = not program.is_compiled(len(batch))
        if compiles:
            self._say(0, "compiling the program of the next ones")
        if _is_alone(first.run):
            runs = _Alone(first.run, states[0], keys[0])
        else:
            runs = program.batch([one.given for one in batch], states, keys)
        done, seconds, saved = records[0].done, 4.0, time.monotonic()
        with contextlib.ExitStack() as held:
            for record, state in zip(records, states, strict=True):
                held.enter_context(record.folder.held())
                record.begin(state)
            while done < last and not stopped():
                count = rounds_now(first.run.experiment.evaluate_every, done, last, seconds)
                begin = time.perf_counter()
                infos = runs.rounds(count)
                if compiles:
                    self._say(0, "")
                    compiles = False
                seconds, done = (time.perf_counter() - begin) / count, done + count
                save = done >= last or stopped() or time.monotonic() - saved > SAVE_SECONDS
                for place, (one, record) in enumerate(zip(batch, records, strict=True)):
                    state = runs.state(place)
                    lines = record.lines(infos[place], count, seconds / len(batch))
                    record.save(lines, self._figures(one, state, done), state, save)
                saved = time.monotonic() if save else saved
            if done:  # of a run without a round there is nothing to be told
                for place, record in enumerate(records):
                    record.end(runs.state(place))

    def _figures(self, one: _Ready, state: RoundState, done: int) -> dict[str, Any]:
        """Scores what is due after these rounds, with the numbers that the program is given."""
        program = one.program
        if id(program) not in self._predictors:
            first = program.first
            self._predictors[id(program)] = make_predictor(first.model, first.task, first.mesh)
        predict = self._predictors[id(program)]
        run = one.run._replace(frozen=one.given.frozen, model=program.first.model)
        seen = Seen(run.model, run.frozen.backbone, run.encoded, run.loaded.own)
        kept = self.loader.scored_prefix(run.experiment, seen, partial(scored_at_all, run))
        run = run._replace(scored_prefix=kept)
        is_due = done == one.last or done % run.experiment.evaluate_every == 0
        return figures(run, predict, state, is_due, done == one.planned)


def _is_alone(run: Prepared) -> bool:
    """Whether a run's examples are dealt from the host, or over devices: then it is computed by itself."""
    return run.settings.by_slot or run.mesh is not None


class _Alone:
    """One run in the place of a batch of them."""

    def __init__(self, run: Prepared, state: RoundState, keys: Keys):
        self._engine, self._state, self._keys = Engine(run), state, keys

    def rounds(self, count: int) -> list[RoundInfo]:
        self._state, infos = self._engine(self._keys, self._state, count)
        return [infos]

    def state(self, place: int) -> RoundState:
        return self._state


def _check_whose(member: Member) -> None:
    """Raises InputError where a run's folder holds a run with other settings."""
    file = RunFolder(member.path).experiment_file
    if file.is_file() and file.read_text() != experiment_text(member.experiment):
        raise InputError(
            f"{str(member.path)!r} holds a run with other settings than are asked for now: give another "
            "folder with --out."
        )


def _remove(path: Path) -> None:
    """Removes a run's folder, unless another process is making the run."""
    file = RunFolder(path).experiment_file
    with locked(file) if file.is_file() else contextlib.nullcontext():
        shutil.rmtree(path)


def _has(member: Member, rounds: int) -> bool:
    """Whether a run has that many rounds, or as many as its budget pays for, and all that follows."""
    folder = RunFolder(member.path)
    if not (member.path / "adapter" / FACTS).is_file():
        return False
    facts = folder.read_json("privacy.json")
    made = len(folder.metrics())
    return made == facts["rounds"] and (made >= rounds or bool(facts["stopped_at_budget"]))


def _saved(path: Path) -> Ledger | None:
    """Returns what a folder was saved with; None if nothing was, or nothing whole."""
    folder = RunFolder(path)
    if not folder.experiment_file.is_file() or not folder.checkpoints.is_dir():
        return None
    checkpoints = Checkpoints(folder.checkpoints)
    try:
        ledger = checkpoints.newest(lambda text: None, len(folder.metrics()))
    finally:
        checkpoints.close()
    if ledger is not None and ledger.experiment != folder.experiment_hash():
        raise InputError(
            f"The checkpoint in {path} belongs to another experiment: remove the folder."
        )
    return ledger


def _record(one: _Ready) -> Record:
    run, program = one.run, one.program
    epsilons = largest_epsilons(run, one.planned)
    if one.ledger is not None:
        folder = RunFolder(one.member.path)
        folder.tidy()
        # It is of fewer rounds: where it stands, the run counts as whole.
        (folder.path / "adapter" / FACTS).unlink(missing_ok=True)
        return Record(run, folder, one.ledger, epsilons)
    member, needed = one.member, program.compiled_bytes
    folder, ledger = new_folder(member.path, run, needed, member.noise_seed)
    return Record(run, folder, ledger, epsilons)


def _batches(ready: Sequence[_Ready]) -> list[list[_Ready]]:
    """Deals runs out to calls: of one program, at the same round, with the same backbone and examples."""
    alike: dict[tuple, list[_Ready]] = {}
    for one in ready:
        done = 0 if one.ledger is None else one.ledger.rounds_done
        alike.setdefault((id(one.program), done, one.last), []).append(one)
    found = []
    for runs in alike.values():
        groups = side_by_side([one.given for one in runs])
        width = 1 if _is_alone(runs[0].run) else runs[0].program.width(max(map(len, groups)))
        for places in groups:
            found += [
                [runs[place] for place in places[begin : begin + width]]
                for begin in range(0, len(places), width)
            ]
    return found
