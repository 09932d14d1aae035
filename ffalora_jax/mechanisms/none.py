"""No privacy: the same Poisson draws, no clipping, no noise. For the price of privacy and the ceiling."""

import math

import jax

from ffalora_jax.accounting import default_capacity, sampling
from ffalora_jax.config import Experiment
from ffalora_jax.mechanisms import ClientPlan, Mechanism, Plan, no_epsilons, nothing_promised


def build(experiment: Experiment) -> Mechanism:
    """Returns the mechanism that divides the sum by the expected batch size and does no more."""
    expected = experiment.batch_size
    capacity = experiment.privacy.capacity or default_capacity(expected)

    def plan(sizes, schedule, multipliers=None):
        clients = tuple(
            ClientPlan(
                sampling(size, schedule.batch_of(client), capacity),
                0.0,
                None,
                schedule.steps_of(client),
            )
            for client, size in enumerate(sizes)
        )
        return Plan(
            clients,
            capacity,
            None,
            no_epsilons,
            nothing_promised,
            rounds_within_budget=schedule.rounds,
        )

    def private_grad(key, total, noise_multiplier):
        return jax.tree.map(lambda leaf: leaf / expected, total)

    return Mechanism(
        plan,
        private_grad,
        clip_norm=math.inf,
        statement="Nothing is protected: updates are computed and sent as they are.",
        trust_model="the server and everyone who sees the model are trusted with the examples",
    )
