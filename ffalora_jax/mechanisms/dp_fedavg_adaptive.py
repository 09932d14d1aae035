"""DP-FedAvg whose clip norm follows a quantile of the updates' norms (Andrew et al. 2021, arXiv:1905.03871).

As ``dp_fedavg``, and the server also counts, with noise of its own, how many of the round's updates were
within the norm; from that follows the next round's norm (``_adaptive``, algorithm 1 there). The norm that
clips a round is the norm that scales its noise. Sum and count together cost what the plan says.
"""

import math

import jax

from ffalora_jax.config import Experiment
from ffalora_jax.mechanisms import Mechanism
from ffalora_jax.mechanisms._adaptive import checked, count_noise, next_factor, remaining
from ffalora_jax.mechanisms._clients import bounded, client_plan
from ffalora_jax.mechanisms._noise import add_noise


def build(experiment: Experiment) -> Mechanism:
    """Returns it for the experiment's first clip norm, quantile, expected cohort and budget.

    Raises:
        InputError: as ``dp_fedavg``.
    """
    settings, expected = experiment.privacy, experiment.batch_size
    plan, clients = client_plan(experiment), experiment.cohort_size or 1
    stddev = count_noise(settings, clients)

    def private_grad(key, total, noise_multiplier):
        return jax.tree.map(lambda leaf: leaf / expected, total)

    def private_total(key, total, noise_multiplier, clients):
        noised = add_noise(key, total, noise_multiplier * settings.clip_norm)
        return jax.tree.map(lambda leaf: leaf / clients, noised)

    def adapt(key, factor, centred):
        return next_factor(key, factor, centred, clients, settings, stddev)

    return Mechanism(
        checked(plan, settings, stddev),
        private_grad,
        clip_norm=math.inf,
        statement=(
            "Every whole client is protected, with all its examples: whoever sees the models and clip "
            "norms that the server gives out learns only a bounded amount (epsilon) about whether that "
            "client was there."
        ),
        trust_model=(
            "everyone but the server: it sees each upload before the noise and adds the noise itself; so "
            "do the clients only as far as the server's models tell them"
        ),
        private_update=lambda moved, factor: bounded(moved, settings.clip_norm * factor),
        private_total=private_total,
        adapt=adapt,
        beside_count=lambda noise_multiplier: remaining(noise_multiplier, stddev),
    )
