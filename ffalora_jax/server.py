"""The server's side of a round: what it makes of the mean, by the method's rule and an optimiser.

Comes after ``aggregation``, which hands over sums, and before ``round``, which calls it once a round.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ffalora_jax import adapters as leaves
from ffalora_jax import controls
from ffalora_jax.aggregation import Sums, if_anybody, mean_upload
from ffalora_jax.compression import Compression, compression_of
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import Mechanism, Plan
from ffalora_jax.methods import Method
from ffalora_jax.optimizers import make_optimizer
from ffalora_jax.types import HEAD_LEAVES, Adapters, Tree


def _nothing(root: Array, round_index: Array) -> Adapters:
    return {}


class Server(NamedTuple):
    """How the server goes from one state to the next."""

    method: Method
    optimizer: optax.GradientTransformation | None = None
    """Takes what the mean moved, negated, as its gradient (Reddi et al. 2021, arXiv:2003.00295, algorithm 2);
    None: the mean as it is."""
    redraw: Callable[[Array, Array], Adapters] = _nothing
    """(public root key, round index) -> factors drawn anew before that round; none for most methods."""
    mechanism: Mechanism | None = None
    """One that adds its noise here; None: what comes is private already, or nothing is promised."""
    noise_multiplier: float = 0.0
    compression: Compression | None = None
    """Of uploads, on their way here."""
    clip_norm: float = 0.0
    """As it was set, in a mechanism that noises the sum."""
    clients: int = 1
    """Number asked in a round, by which such a mechanism divides, whoever comes."""
    population: int = 1
    """Number of all clients."""
    control_scale: float | None = None
    """What changes of control variates are multiplied with on the wire; None: without (``controls``)."""

    def check(self, name: str) -> None:
        """Refuses an optimiser beside a method that reads more than the mean.

        Raises:
            InputError: so it is.
        """
        if self.optimizer is not None and self.method.reads_uploads:
            raise InputError(
                f"method.name {name!r} reads each client's upload and not the mean alone, so an optimiser on "
                "the mean says nothing: leave server.optimizer at average, or take ffa_lora, fedavg_lora, ..."
            )
        if self.optimizer is not None and self.method.kept and _remembers(self.optimizer):
            raise InputError(
                f"method.name {name!r} turns its factors after every round, and what server.optimizer "
                "remembers of earlier rounds would be in other coordinates: take sgd without momentum, "
                "average, or ffa_lora, fedavg_lora, ..."
            )
        if self.compression is not None and self.method.wire is not None:
            raise InputError(
                f"Expected compression = 'none' with method.name {name!r}, whose messages go another way "
                "than its computation: take ffa_lora, fedavg_lora, rolora, ..."
            )
        if self.control_scale is not None:
            self._check_controls(name)
        if self.mechanism is None:
            return
        if self.compression is not None:
            raise InputError(
                "Expected compression = 'none' where the server sees sums alone: what is kept of one upload "
                "would show what is to be hidden. Take --privacy.mechanism dp_sgd."
            )
        what = ""
        if self.method.reads_uploads:
            what = "reads each client's upload, and the noise is in their sum alone"
        elif self.method.is_baseline:
            what = "is a yardstick in which no clients meet"
        elif self.mechanism.sums_integers and not self.method.linear:
            what = "sends what is not linear in what was noised, and shares of noise add up in linear sums"
        elif self.mechanism.sums_integers and self.method.personal:
            what = "keeps leaves at the clients, with their share of the noise alone"
        if what:
            raise InputError(
                f"method.name {name!r} {what}: take ffa_lora, fedavg_lora, rolora, ..., or "
                "--privacy.mechanism dp_sgd."
            )

    def _why_not_later(self) -> str:
        """Returns why what a client moved says nothing a round later, or nothing if it does."""
        method = self.method
        if method.reads_uploads or method.is_baseline:
            return "does not go on from the mean of what its clients send"
        if method.kept or method.redrawn or method.wire is not None:
            return "has the server change what the clients' leaves belong to"
        return ""

    def _check_controls(self, name: str) -> None:
        why = self._why_not_later()
        if self.compression is not None:
            why = "with compression would let the clients' and the server's controls drift apart"
        elif self.mechanism is not None and self.mechanism.sums_integers:
            why = "would keep controls with a share of the noise alone under dp_sgd_secagg"
        if why:
            raise InputError(
                f"Expected optimizer.control_variates = false: method.name {name!r} {why}. Take ffa_lora, "
                "fedavg_lora, rolora, ... with dp_sgd, dp_fedavg or none."
            )

    def check_late(self, name: str) -> None:
        """Refuses late uploads beside a server to which what a client moved a round ago says nothing.

        Raises:
            InputError: so it is.
        """
        why = self._why_not_later()
        if len(self.method.parts) > 1:
            why = "has rounds whose leaves are not those of the round before"
        elif self.mechanism is not None:
            why = "is to have a sum in which each client counts once, under this privacy.mechanism"
        if why:
            raise InputError(
                f"Expected sites.late_weight = 0: method.name {name!r} {why}. Take ffa_lora, fedavg_lora, "
                "... with dp_sgd or none."
            )

    def nothing(self, active: Adapters) -> Adapters:
        """Returns what a client sends that moved nothing."""
        upload = self.method.upload(active, active)
        if self.control_scale is None:
            return upload
        return controls.beside(upload, controls.at_zero(active), self.control_scale)

    def active(self, adapters: Adapters, phase: int) -> Adapters:
        """Returns the server's leaves that a phase trains."""
        return leaves.select(adapters, self.method.parts[phase] | set(HEAD_LEAVES))

    def begin(self, adapters: Adapters) -> Tree:
        """Returns the optimiser's state before the first round, phase by phase."""
        if self.optimizer is None:
            return ()
        active = [self.active(adapters, phase) for phase in range(len(self.method.parts))]
        return tuple(self.optimizer.init(self.method.upload(one, one)) for one in active)

    def step(
        self,
        phase: int,
        adapters: Adapters,
        memory: Tree,
        control: Adapters | None,
        key: Array,
        noise_factor: tuple[float | Array, float | Array],
        sums: Sums,
        uploads: Callable[[Adapters], tuple[Tree, Array]],
    ) -> tuple[Adapters, Tree, Adapters | None]:
        """Returns the server's leaves, its optimiser's state and its control variate after a round.

        Args:
            phase: of the round.
            adapters: all its leaves before.
            memory: the optimiser's state before.
            control: before; None: without.
            key: of this round's noise, for a mechanism that adds it here.
            noise_factor: of the noise multiplier, and of the clip norm.
            sums: over the clients.
            uploads: (what an empty slot sends) -> (stacked uploads, weights), for methods that read them.
        """
        active = self.active(adapters, phase)
        nothing, whole = self.method.upload(active, active), self.nothing(active)
        mean = self._mean(key, noise_factor, sums, whole)
        if self.control_scale is not None:
            assert control is not None
            mean, moved = controls.apart(mean, self.control_scale)
            share = (self.clients if self._noises_sum else sums.weight) / self.population
            now = leaves.select(control, leaves.names(moved))
            now = jax.tree.map(lambda c, change: c + share * change, now, moved)
            control = leaves.merge(control, now)
        if self.optimizer is not None:
            gradient = jax.tree.map(jnp.subtract, nothing, mean)
            change, mine = self.optimizer.update(gradient, memory[phase], nothing)
            if not self._noises_sum:  # in which nobody is to be seen missing
                still = jax.tree.map(jnp.zeros_like, change), memory[phase]
                change, mine = if_anybody(sums, (change, mine), still)
            mean = jax.tree.map(jnp.add, nothing, change)
            memory = (*memory[:phase], mine, *memory[phase + 1 :])
        sent, weights = uploads(whole)
        if self._noises_sum:
            # Who took part is secret, whether anybody did included: the noised mean is read, whatever came.
            weights = jnp.ones_like(weights)
        return self.method.read(adapters, mean, sent, weights), memory, control

    @property
    def _noises_sum(self) -> bool:
        return self.mechanism is not None and self.mechanism.private_total is not None

    def _mean(self, key: Array, noise_factor: tuple, sums: Sums, nothing: Tree) -> Tree:
        """Returns the mean upload: of what came, or what the mechanism makes of the sum of what moved."""
        if not self._noises_sum:
            return mean_upload(sums, fallback=nothing)
        assert self.mechanism is not None
        assert self.mechanism.private_total is not None
        multiplier, clip = noise_factor
        noise = self.mechanism.beside_count(self.noise_multiplier * multiplier) * clip
        moved = self.mechanism.private_total(key, sums.weighted, noise, self.clients)
        return jax.tree.map(jnp.add, nothing, moved)


def _remembers(optimizer: optax.GradientTransformation) -> bool:
    return any(jnp.ndim(leaf) for leaf in jax.tree.leaves(optimizer.init({"x": jnp.zeros(2)})))


def make_server(
    experiment: Experiment,
    method: Method,
    mechanism: Mechanism,
    plan: Plan,
    cohort_size: int,
    redraw: Callable[[Array, Array], Adapters] = _nothing,
) -> Server:
    """Returns the experiment's server.

    Args:
        experiment: says what it makes of the mean.
        method: its rule.
        mechanism: of the run; one that adds its noise here is the server's too.
        plan: how much noise, over how many clients.
        cohort_size: clients expected in a round.
        redraw: see ``Server``.

    Raises:
        InputError: parts that do not go together.
    """
    options, local, optimizer = experiment.server, experiment.optimizer, None
    if options.optimizer != "average":
        given = options.optimizer, options.learning_rate, options.options
        optimizer = make_optimizer(*given, "server's")
    server = Server(method, optimizer, redraw, population=len(plan.clients))
    server = server._replace(compression=compression_of(experiment.compression))
    if local.control_variates:
        server = server._replace(control_scale=local.learning_rate * experiment.local_steps)
        _check_control_variates(experiment, plan)
    if method.personal or experiment.model.head == "personal":
        _check_kept(plan, "leaves that stay at the clients", "all clients in every round")
    if mechanism.correlated is not None and (method.phases or method.local_parts):
        raise InputError(
            f"method.name {experiment.method.name!r} does not train all its leaves in every step, and noise "
            f"that runs on from step to step ({experiment.privacy.mechanism}) needs that: take ffa_lora, "
            "fedavg_lora, ... without a schedule of what is frozen, or --privacy.mechanism dp_sgd."
        )
    if mechanism.hides_uploads:
        server = server._replace(
            mechanism=mechanism,
            noise_multiplier=plan.clients[0].noise_multiplier,
            clip_norm=experiment.privacy.clip_norm,
            clients=cohort_size,
        )
    server.check(experiment.method.name)
    if experiment.sites.late_weight:
        server.check_late(experiment.method.name)
    return server


def _check_control_variates(experiment: Experiment, plan: Plan) -> None:
    """Refuses settings under which the server's control would not be the mean of the clients'."""
    if 0 < experiment.sites.late_weight < 1:
        raise InputError(
            f"Expected sites.late_weight = 0 or 1 with optimizer.control_variates, got "
            f"{experiment.sites.late_weight:g}: a control that counts in part is never put right."
        )
    _check_kept(plan, "optimizer.control_variates", "no cohort_size")
    if experiment.weights != "uniform":
        raise InputError(
            "Expected weights = 'uniform' with optimizer.control_variates: the server's control is "
            "the plain mean over all clients, whoever comes."
        )


def _check_kept(plan: Plan, what: str, otherwise: str) -> None:
    """Refuses what clients keep from round to round where one client can keep another out of a draw.

    The bill of a capped draw is for that round's sum; what the one kept out would have learned is missing
    in its later uploads too.
    """
    priced = plan.clients[0].priced
    if plan.unit == "client" and priced is not None and priced.capacity is not None:
        raise InputError(
            "Expected all clients in every round, or cohorts whose cap cannot bind, with "
            f"{what} under client-level privacy: who keeps another out of a full draw would change what "
            f"that one keeps for good. Take {otherwise}, or dp_sgd."
        )
