"""DP-SGD whose clip norm follows a quantile of the gradients' norms at each client (Andrew et al. 2021).

As ``dp_sgd``, and each step also counts, with noise of its own, how many of its examples were within the
norm; from that follows the next step's norm (``_adaptive``). A client's norm goes on from the server's, which
is the geometric mean of what the clients of the last round came to: both depend on noised numbers alone. The
sum and the count together cost what the plan says, with a little more noise on the sum.
"""

from ffalora_jax.config import Experiment
from ffalora_jax.mechanisms import Mechanism
from ffalora_jax.mechanisms._adaptive import following
from ffalora_jax.mechanisms._examples import example_level


def build(experiment: Experiment) -> Mechanism:
    """Returns it for the experiment's first clip norm, quantile, expected batch and budget."""
    return following(example_level(experiment), experiment.privacy, experiment.batch_size)
