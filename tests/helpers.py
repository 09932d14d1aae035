"""Small prepared runs that many tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ffalora_jax import registry, rng
from ffalora_jax.cohort import draw_local_batches
from ffalora_jax.config import (
    DataConfig,
    Experiment,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    PartitionConfig,
    PrivacyConfig,
)
from ffalora_jax.prepare import Prepared, prepare
from ffalora_jax.round import Keys

NOISE_SEED = 99


@functools.cache
def prepared(
    method="ffa_lora",
    mechanism="dp_sgd",
    head="trained",
    clip_norm=0.7,
    noise_multiplier=0.8,
    chunk="1",
    clients=4,
    cohort_size=None,
    sampling="fixed",
    weighted=False,
    optimizer="sgd",
    learning_rate=0.4,
    rounds=12,
    batch_size=4,
    num_examples=96,
    layers="all",
    init="kaiming",
) -> Prepared:
    """A run of the tiny model on synthetic text, with clipping active."""
    experiment = Experiment(
        rounds=rounds,
        local_steps=1 if mechanism == "dp_sgd_secagg" else 2,
        batch_size=batch_size,
        client_chunk=chunk,
        cohort_size=cohort_size,
        cohort_sampling=sampling,
        weights="size" if weighted else "uniform",
        data=DataConfig(name="synthetic", max_examples=num_examples),
        partition=PartitionConfig(name="quantity", num_clients=clients, quantity_skew=0.5),
        model=ModelConfig(name="tiny", max_tokens=16, head=head),
        method=MethodConfig(name=method, rank=2, lora_alpha=16, layers=layers, init=init),
        optimizer=OptimizerConfig(name=optimizer, learning_rate=learning_rate),
        privacy=PrivacyConfig(
            mechanism=mechanism, noise_multiplier=noise_multiplier, clip_norm=clip_norm, delta=1e-3
        ),
    )
    return prepare(experiment)


def go_together(method: str, mechanism: str) -> bool:
    """Whether a method can have a mechanism: one that noises the sum shows no upload to anybody."""
    found = registry.lookup("methods", method)()
    sums_alone = mechanism in ("dp_fedavg", "dp_fedavg_adaptive", "dp_sgd_secagg")
    if sums_alone and (found.reads_uploads or found.is_baseline):
        return False
    if mechanism == "dp_sgd_banded":  # its noise runs on from step to step, in all leaves
        return not (found.phases or found.local_parts)
    if mechanism == "dp_sgd_secagg":  # shares of noise add up in linear sums alone
        return found.linear and not (found.personal or found.local_parts)
    return True


def keys(run: Prepared) -> Keys:
    """The roots of a prepared run, with a fixed secret seed."""
    return Keys(rng.public_root(run.experiment.seed), rng.secret_root(NOISE_SEED))


_COMPILED = {}


def compiled(run: Prepared, what: str):
    """Returns ``rounds`` or a jitted ``round_step`` of a run, made once while the run is the same object."""
    key = id(run), what
    if key not in _COMPILED:  # the run is kept beside, so that its id stays its own
        _COMPILED[key] = run, run.rounds() if what == "rounds" else jax.jit(run.round_step())
    return _COMPILED[key][1]


def let_go() -> None:
    """Forgets all prepared runs and what was compiled for them."""
    _COMPILED.clear()
    prepared.cache_clear()


def run_rounds(run: Prepared, count: int, state=None):
    """Runs some rounds in calls as large as they come; returns the state and the infos."""
    rounds = compiled(run, "rounds")
    state, infos = run.state if state is None else state, []
    while count > 0:
        now = min(count, run.settings.rounds_per_call)
        state, info = rounds(keys(run), state, run.frozen, run.data, run.numbers, jnp.int32(now))
        infos.append(info)
        count -= now
    return state, infos


def silent(run: Prepared) -> Prepared:
    """The same run with its clipping and without its clients' noise."""
    none = 0 * run.numbers.noise_multiplier
    return run._replace(numbers=run.numbers._replace(noise_multiplier=none))


def participants(infos) -> list[list[int]]:
    """The clients that took part in each round of a call."""
    rounds = zip(np.asarray(infos.clients), np.asarray(infos.took_part), strict=True)
    return [clients[there].tolist() for clients, there in rounds]


def drawn_rows(run: Prepared, round_index: int, client: int) -> list[list[int]]:
    """The rows that a client draws in a round, step by step: what the twin is given."""
    batch = draw_local_batches(
        keys(run).secret,
        round_index,
        client,
        run.data,
        client,
        run.numbers.threshold[client],
        run.experiment.local_steps,
        run.plan.capacity,
        bands=1 if run.mechanism.correlated is None else run.mechanism.correlated.bands,
    )
    return [
        [int(row) for row, real in zip(rows, is_real, strict=True) if real]
        for rows, is_real in zip(np.asarray(batch.rows), np.asarray(batch.is_real), strict=True)
    ]
