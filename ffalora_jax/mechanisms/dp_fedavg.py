"""Client-level DP: DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963, Algorithm 1).

A client trains as it likes, without noise. What its upload moved, over all sent leaves together, is clipped
to C; the server adds Gaussian noise to the sum over the round's clients and divides by their *expected*
number. Who takes part is a Poisson draw that nobody sees, so sampling amplifies. Protected is a whole
client with all its examples, against everyone but the server.
"""

from ffalora_jax.config import Experiment
from ffalora_jax.mechanisms import Mechanism
from ffalora_jax.mechanisms._clients import client_level


def build(experiment: Experiment) -> Mechanism:
    """Returns DP-FedAvg with the experiment's clip norm, expected cohort and budget.

    Raises:
        InputError: clients weighted by size, a cohort of a fixed size out of more clients, or the first
            of several to come.
    """
    return client_level(experiment)
