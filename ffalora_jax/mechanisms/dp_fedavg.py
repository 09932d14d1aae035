"""Client-level DP: DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963, Algorithm 1).

A client trains as it likes, without noise. What its upload moved, over all sent leaves together, is clipped
to C; the server adds Gaussian noise to the sum over the round's clients and divides by their *expected*
number. Who takes part is a Poisson draw that nobody sees, so sampling amplifies. Protected is a whole
client with all its examples, against everyone but the server.
"""

import math

import jax

from ffalora_jax.config import Experiment
from ffalora_jax.mechanisms import Mechanism
from ffalora_jax.mechanisms._clients import bounded, client_plan
from ffalora_jax.mechanisms._noise import add_noise


def build(experiment: Experiment) -> Mechanism:
    """Returns DP-FedAvg with the experiment's clip norm, expected cohort and budget.

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
