"""DP-FedAvg whose clip norm follows a quantile of the updates' norms (Andrew et al. 2021, arXiv:1905.03871).

As ``dp_fedavg``, and the server also counts, with noise of its own, how many of the round's updates were
within the norm; from that follows the next round's norm (``_adaptive``, algorithm 1 there). The norm that
clips a round is the norm that scales its noise. Sum and count together cost what the plan says.
"""

from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import Mechanism
from ffalora_jax.mechanisms._adaptive import following
from ffalora_jax.mechanisms._clients import client_level


def build(experiment: Experiment) -> Mechanism:
    """Returns it for the experiment's first clip norm, quantile, expected cohort and budget.

    Raises:
        InputError: as ``dp_fedavg``; sites that may stay away.
    """
    if experiment.sites.may_stay_away:
        raise InputError(
            "Expected sites that are always there with dp_fedavg_adaptive: its noised count is read as a "
            "share of the clients asked, so who stays away would count half as within the norm. Leave "
            "sites.available, trace and deadline out, or take dp_fedavg."
        )
    return following(client_level(experiment), experiment.privacy, experiment.cohort_size or 1)
