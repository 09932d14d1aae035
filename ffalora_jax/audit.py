"""How much a mechanism gives away at least: canaries put into its own rounds, and guessed from the outcome.

Each canary has a gradient in a random direction, far above the clip norm. A fair coin says whether it is in
the data or has no gradient at all; the rounds run as they are (draws, clipping, noise, averages, all the
code), and the canary's score is what the model moved along its direction. From how well scores tell the two
kinds apart follows, with a confidence, an epsilon that was spent at least: one run of many canaries is
enough (Steinke et al. 2023, arXiv:2305.08846). A bound above the claimed epsilon proves an error; one below
proves nothing. Where the trained numbers are not many more than the canaries, those hide one another and
the bound is weak. Gradients go the plain way, example by example; that packed rows give the same sums is
tested elsewhere.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ffalora_jax import adapters as leaves
from ffalora_jax import rng
from ffalora_jax.cohort import Cohort
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError, between, positive
from ffalora_jax.lora import LoraModel
from ffalora_jax.prepare import Prepared, prepare
from ffalora_jax.rng import Keys
from ffalora_jax.tasks import Task
from ffalora_jax.types import Adapters

LEAST_CANARIES = 20
LENGTH = 1e3
"""Of a canary's gradient, in clip norms: all of it has to be cut."""


class Audit(NamedTuple):
    """What was found."""

    mechanism: str
    unit: str
    canaries: int
    inserted: int
    rounds: int
    claimed: float
    """Epsilon of the plan after these rounds, for the client (or clients) that held the canaries."""
    delta: float
    lower_bound: float
    """Epsilon that was spent at least."""
    ceiling: float
    """What so many canaries could have shown at most, had all been told apart."""
    confidence: float
    auroc: float
    """Share of pairs (inserted, left out) whose scores are in the right order; 1/2 gives nothing away."""

    @property
    def holds(self) -> bool:
        """Whether the claim stands."""
        return self.lower_bound <= self.claimed


def audit(
    experiment: Experiment,
    data: Any = None,
    *,
    model: nnx.Module | None = None,
    canaries: int = 1000,
    confidence: float = 0.95,
) -> Audit:
    """Runs an experiment's rounds with canaries in them and bounds from below what they gave away.

    Under example-level privacy the canaries take the place of examples of the largest client, which trains
    alone; under client-level privacy every client is one, so that there must be many clients.

    Raises:
        InputError: no privacy to audit, a method whose server does more than average, too few canaries.
    """
    positive(canaries=canaries)
    between(0.5, 1, confidence=confidence)
    plain = {"packing": False, "prefix_cache": "never", "client_chunk": "auto"}
    # The canaries are put among the data of all clients.
    experiment = experiment.replace(**plain, client_data="device")
    run = prepare(experiment, data, model)
    _check(run)
    owner = int(np.argmax(np.asarray(run.data.sizes)))
    there = run.settings.num_clients if run.plan.unit == "client" else int(run.data.sizes[owner])
    count = min(canaries, there)
    if count < LEAST_CANARIES:
        what = "clients" if run.plan.unit == "client" else "examples at the largest client"
        raise InputError(
            f"Expected at least {LEAST_CANARIES} canaries, got {count} (there are {there} {what}): a bound "
            "from so few says nothing. Give more data, or --partition.num_clients."
        )
    scores, inserted = scored(run, count, owner)
    return judged(run, scores, inserted, owner, confidence)


def scored(
    run: Prepared, count: int, owner: int, noise_seed: int | None = None
) -> tuple[Float[Array, " canary"], Bool[Array, " canary"]]:
    """Runs all rounds with canaries; returns how far the model moved along each, and which were inserted."""
    seed = rng.fresh_noise_seed() if noise_seed is None else noise_seed
    fresh = Keys(rng.public_root(run.experiment.seed), rng.secret_root(seed))
    coins = rng.stream(fresh.secret, rng.Purpose.CANARY_COIN)
    inserted = jax.random.bernoulli(coins, 0.5, (count,))
    trained = leaves.names(run.state.adapters)
    direction = _directions(fresh.public, trained)
    run = _with_canaries(run, count, owner, inserted, direction)
    step = jax.jit(run.round_step())
    cohort = None
    if not run.mechanism.hides_uploads:
        cohort = Cohort(jnp.asarray([owner]), jnp.ones(1, bool))
    state = run.state
    for _ in range(min(run.experiment.rounds, run.plan.rounds_within_budget)):
        state, _ = step(fresh, state, run.frozen, run.data, run.numbers, None, cohort)
    moved = jax.tree.map(jnp.subtract, run.state.adapters, state.adapters)
    along = jax.lax.map(lambda canary: direction(canary, moved), jnp.arange(count))
    return along, inserted


def _check(run: Prepared) -> None:
    if run.plan.unit is None:
        raise InputError("privacy.mechanism 'none' claims nothing: there is nothing to audit.")
    if run.plan.rounds_within_budget == 0:
        raise InputError(
            "The budget pays for no round: raise privacy.epsilon or the noise, then audit."
        )
    if run.model.members > 1:
        raise InputError(
            f"Expected ensemble.members = 1 for an audit, got {run.model.members}: members share one bill, "
            "and a canary's direction is that of one model."
        )
    method = run.method
    plain = not (method.reads_uploads or method.kept or method.is_baseline or method.redrawn)
    if not plain or jax.tree.leaves(run.state.personal):
        raise InputError(
            f"An audit reads the mean of what is sent, and method.name {run.experiment.method.name!r} keeps "
            "or changes more than that: the mechanism is the same with --method.name fedavg_lora or ffa_lora "
            "and --model.head trained."
        )


def _directions(key: Array, trained: set[str]):
    """Returns (canary, leaves) -> what the trained leaves hold along the canary's unit direction."""

    def along(canary: Int[Array, ""], adapters: Adapters) -> Float[Array, ""]:
        mine = jax.tree.leaves(leaves.select(adapters, trained))
        base = rng.stream(key, rng.Purpose.CANARY, canary)
        drawn = [jax.random.normal(rng.leaf(base, i), leaf.shape) for i, leaf in enumerate(mine)]
        length = jnp.sqrt(jnp.asarray(sum(jnp.sum(one**2) for one in drawn)))
        products = [jnp.sum(one * leaf) for one, leaf in zip(drawn, mine, strict=True)]
        return jnp.asarray(sum(products)) / length

    return along


def _with_canaries(
    run: Prepared, count: int, owner: int, inserted: Bool[Array, " canary"], direction
) -> Prepared:
    """Returns the run in which some examples' loss is linear: its gradient is the canary's, or nothing."""
    members, sizes = np.asarray(run.data.members), np.asarray(run.data.sizes)
    which = np.full(len(run.data.labels), -1, np.int32)
    if run.plan.unit == "client":
        for client in range(count):
            which[members[client, : sizes[client]]] = client
    else:
        which[members[owner, :count]] = np.arange(count)
    bound = run.experiment.privacy.clip_norm

    def apply_training(backbone, adapters, key, *inputs, canary=None, **named):
        if canary is None:
            return run.model.apply_training(backbone, adapters, key, *inputs, **named)
        moved = direction(canary, adapters)
        return jnp.where(inserted[canary], LENGTH * bound * moved, 0.0)

    def loss(forward, inputs, label):
        canary = inputs["canary"]
        plain = {name: leaf for name, leaf in inputs.items() if name != "canary"}
        real = run.task.loss(forward, plain, label)
        return jnp.where(canary < 0, real, forward(canary=jnp.maximum(canary, 0)))

    task: Task = run.task._replace(loss=loss)
    model: LoraModel = run.model._replace(apply_training=apply_training)
    inputs = {**run.data.inputs, "canary": jnp.asarray(which)}
    return run._replace(task=task, model=model, data=run.data._replace(inputs=inputs))


def judged(run: Prepared, scores, inserted, owner: int, confidence: float) -> Audit:
    """Returns what scores of inserted and left-out canaries prove."""
    try:
        from jax_privacy.auditing import CanaryScoreAuditor
    except ImportError:
        raise InputError(
            'ffalora audit needs the package jax-privacy: pip install "ffalora_jax[audit]".'
        ) from None
    scores, inserted = np.asarray(scores, np.float64), np.asarray(inserted)
    if not (inserted.any() and not inserted.all()):
        raise InputError("All coins fell alike: run the audit again, with more canaries.")
    judge = CanaryScoreAuditor(scores[inserted], scores[~inserted])
    perfect = CanaryScoreAuditor(np.ones(inserted.sum()), np.zeros((~inserted).sum()))
    delta = run.experiment.privacy.delta
    rounds = min(run.experiment.rounds, run.plan.rounds_within_budget)
    return Audit(
        mechanism=run.experiment.privacy.mechanism,
        unit=str(run.plan.unit),
        canaries=len(scores),
        inserted=int(inserted.sum()),
        rounds=rounds,
        claimed=run.plan.spent(owner, rounds),
        delta=delta,
        lower_bound=float(judge.epsilon_one_run(1 - confidence, delta)),
        ceiling=float(perfect.epsilon_one_run(1 - confidence, delta)),
        confidence=confidence,
        auroc=float(judge.attack_auroc()),
    )
