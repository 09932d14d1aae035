"""Client-level mechanisms: updates bounded, noise at the server, and what a draw of clients costs."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ffalora_jax import accounting
from ffalora_jax.cohort import cohort_capacity
from ffalora_jax.config import Experiment
from ffalora_jax.config_training import DEFAULT_EPSILON
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import ClientPlan, Mechanism, Plan
from ffalora_jax.mechanisms._noise import add_noise, affordable_rounds

NEIGHBOURS = "add or remove one client with all its examples (the number of clients is public)"


def client_level(experiment: Experiment) -> Mechanism:
    """Returns DP-FedAvg at a trusted server, with the experiment's clip norm, expected cohort and budget.

    Raises:
        InputError: clients weighted by size, a cohort of a fixed size out of more clients, or the first
            of several to come.
    """
    settings, expected = experiment.privacy, experiment.batch_size

    def private_grad(key, total, noise_multiplier):
        return jax.tree.map(lambda leaf: leaf / expected, total)

    def private_total(key, total, noise_multiplier, clients):
        noised = add_noise(key, total, noise_multiplier * settings.clip_norm)
        return jax.tree.map(lambda leaf: leaf / clients, noised)

    return Mechanism(
        client_plan(experiment),
        private_grad,
        clip_norm=math.inf,
        statement=(
            "Every whole client is protected, with all its examples: whoever sees the models that the "
            "server gives out learns only a bounded amount (epsilon) about whether that client was there."
        ),
        trust_model=(
            "everyone but the server: it sees each upload before the noise and adds the noise itself; so "
            "do the clients only as far as the server's models tell them"
        ),
        private_update=lambda moved, factor: bounded(moved, settings.clip_norm * factor),
        private_total=private_total,
    )


def client_plan(experiment: Experiment) -> Callable[..., Plan]:
    """Returns ``Mechanism.plan`` of noised sums over Poisson draws of whole clients.

    Raises:
        InputError: clients weighted by size, a cohort of a fixed size out of more clients, or the first
            of several to come.
    """
    settings, expected = experiment.privacy, experiment.batch_size
    capacity = settings.capacity or accounting.default_capacity(expected)
    if experiment.weights != "uniform":
        raise InputError(
            "Expected weights = 'uniform' under client-level privacy: a client that counts n_k times moves "
            "the sum by n_k clip norms, and its size would show."
        )

    if experiment.sites.over_select > 1:
        raise InputError(
            "Expected sites.over_select = 1 under client-level privacy: where the first to come are taken, "
            "one client more keeps another one out, and the sum moves by two clip norms."
        )

    def plan(sizes, schedule, multipliers=None):
        draw = _draw(experiment, len(sizes))
        warning = accounting.check_delta(settings.delta, len(sizes))
        calibrated = multipliers is None and settings.noise_multiplier is None
        if multipliers is not None:
            sigma = multipliers[0]
        elif settings.noise_multiplier is not None:
            sigma = settings.noise_multiplier
            accounting.check_noise(sigma)
        else:
            budget = settings.budget or DEFAULT_EPSILON
            sigma = accounting.noise_for(
                draw, budget, schedule.sums(schedule.rounds, 1), settings.delta
            )

        @functools.cache
        def curve(rounds):
            after = [schedule.sums(done, 1) for done in range(1, rounds + 1)]
            return [0.0, *accounting.trajectory(draw, sigma, after, settings.delta)]

        def spent(client, rounds):
            return accounting.epsilon_of(draw, sigma, schedule.sums(rounds, 1), settings.delta)

        affordable = schedule.rounds
        if not calibrated:
            affordable = affordable_rounds(draw, sigma, schedule, 1, settings)
        event = accounting.event_of(draw, sigma)
        return Plan(
            tuple(
                ClientPlan(
                    accounting.sampling(n, schedule.batch_of(client), capacity),
                    sigma,
                    event,
                    priced=draw,
                )
                for client, n in enumerate(sizes)
            ),
            capacity,
            "client",
            lambda client, rounds: curve(rounds),
            spent,
            affordable,
            (warning,) if warning else (),
            neighbours=NEIGHBOURS,
        )

    return plan


def bounded(moved, clip_norm):
    """Returns (a client's change within ``clip_norm`` in L2 over all leaves together, its norm before).

    Guarantee: the norm of the result is at most ``clip_norm`` (1 + 1e-6), in float32; a change that is not
    finite becomes zero. So adding or removing a client moves the sum by no more.
    """
    moved = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), moved)
    norm = optax.tree.norm(moved)
    scale = jnp.where(norm > clip_norm, clip_norm / norm, 1.0)
    return jax.tree.map(lambda x: jnp.where(jnp.isfinite(norm), scale * x, 0.0), moved), norm


def _draw(experiment: Experiment, clients: int) -> accounting.Sampling:
    """Returns the draw of clients that a round makes: with its cap, if that can bind."""
    size = experiment.cohort_size or clients
    if size == clients:
        return accounting.Sampling(clients, 1.0, None)
    if experiment.cohort_sampling != "poisson":
        raise InputError(
            f"Expected cohort_sampling = 'poisson' under client-level privacy with {size} of {clients} "
            f"clients in a round, got {experiment.cohort_sampling!r}: its bill is for independent draws."
        )
    capacity = cohort_capacity(clients, size, "poisson")
    return accounting.Sampling(clients, size / clients, capacity if capacity < clients else None)
