"""From an experiment to everything that its run needs: all names looked up, all checks done, nothing written.

Stands between the parts and the loop: ``simulate`` runs what is prepared here, ``run_folder`` writes it.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from ffalora_jax import adapters as leaves
from ffalora_jax import ensemble, flops, partition, registry
from ffalora_jax.checks import (
    check_classes,
    check_sizes,
    check_steps,
    check_weights,
    cohort_size_of,
)
from ffalora_jax.chunking import LEAST_AT_ONCE, arrange, bytes_per_client, choose
from ffalora_jax.client import Frozen, make_local_update
from ffalora_jax.clipping import Blocks
from ffalora_jax.cohort import ClientData, Presence, RoundSettings, host_data, threshold
from ffalora_jax.config import Experiment
from ffalora_jax.data import Dataset
from ffalora_jax.deal import where_data_lies
from ffalora_jax.freezing import method_of
from ffalora_jax.initial import initial_state, memories, nobody_late, redraw
from ffalora_jax.load import inject, prompt_room
from ffalora_jax.loader import Loader
from ffalora_jax.lora import LoraModel
from ffalora_jax.lora_init import LoraInit
from ffalora_jax.mechanisms import Mechanism, Plan, Schedule
from ffalora_jax.mesh import backbone_on, make_mesh, num_shards, replicated
from ffalora_jax.methods import Method
from ffalora_jax.network import Sites, sites_of
from ffalora_jax.optimizers import make_optimizer
from ffalora_jax.partition import Owners
from ffalora_jax.prefix import ScoredPrefix, Seen
from ffalora_jax.presence import num_asked, own_numbers, presence_of
from ffalora_jax.pretrained import Loaded
from ffalora_jax.probes import Packing
from ffalora_jax.round import ClientNumbers, RoundState, make_round, make_rounds
from ffalora_jax.schedules import rates_of
from ffalora_jax.server import Server, make_server
from ffalora_jax.tasks import Task, task_of
from ffalora_jax.text import Encoded


class Prepared(NamedTuple):
    """A run before its first round."""

    experiment: Experiment
    dataset: Dataset
    owners: Owners
    encoded: Encoded
    task: Task
    loaded: Loaded
    model: LoraModel
    method: Method
    mechanism: Mechanism
    plan: Plan
    data: ClientData
    numbers: ClientNumbers
    frozen: Frozen
    state: RoundState
    settings: RoundSettings
    chunk_reason: str
    """Why so many clients are computed at once."""
    blocks: Blocks
    packing: Packing | None
    mesh: Mesh | None
    prefix_note: str
    """What is kept of the blocks below the lowest adapter, or why nothing is."""
    optimizer: optax.GradientTransformation
    server: Server
    sites: Sites | None
    """Machines and links, where something is said about them."""
    step_flops: float
    """Operations of one local step at a site, without padding; 0 without sites."""
    scored_prefix: ScoredPrefix | None = None
    """What lies below the adapters of scored examples, where many runs score them."""

    @property
    def train_names(self) -> tuple[str, ...]:
        """Names of the clients that train (one where the data is pooled)."""
        return ("everyone",) if self.method.pooled else self.owners.names

    @property
    def keeps_unnoised(self) -> bool:
        """Whether leaves stay at clients without noise, which is added to the sum of what is sent."""
        return self.plan.unit == "client" and bool(jax.tree.leaves(self.state.personal))

    @property
    def num_trained(self) -> int:
        """How many numbers a client holds that are trained, the head's among them."""
        mine = jax.tree.map(lambda leaf: leaf[0], self.state.personal)
        return sum(leaf.size for leaf in jax.tree.leaves((self.state.adapters, mine)))

    def local_update(self):
        """Returns the pure function of one client's part of a round."""
        watched, ensembled = self.experiment.monitor, self.experiment.ensemble
        return make_local_update(
            self.model,
            self.task,
            self.mechanism,
            self.method,
            self.optimizer,
            self.experiment.local_steps,
            self.plan.capacity,
            self.blocks,
            self.packing,
            self.experiment.optimizer.proximal,
            self.experiment.batch_size,
            separate=ensembled.members if ensembled.clip == "separate" else 1,
            watch=watched.on and not watched.private and self.plan.unit is not None,
        )

    def round_step(self):
        """Returns the pure function of one round."""
        return make_round(self.local_update(), self.server, self.settings, self.mesh)

    def rounds(self):
        """Returns the jitted function of several rounds."""
        return make_rounds(self.round_step(), self.settings, self.mesh)


def prepare(
    experiment: Experiment,
    data: Any = None,
    model: nnx.Module | None = None,
    multipliers: Sequence[float] | None = None,
    loader: Loader | None = None,
) -> Prepared:
    """Looks up, loads, splits, tokenises, calibrates. See ``simulate`` for the arguments.

    With the ``loader`` of another run, in place of data and model, what both need is loaded once.

    Raises:
        InputError: anything about the experiment that cannot work.
    """
    method = ensemble.of_method(method_of(experiment), experiment.ensemble.members)
    check_steps(experiment, method)
    check_weights(experiment)
    init: LoraInit = registry.lookup("inits", experiment.method.init)()
    make_mechanism = registry.lookup("mechanisms", experiment.privacy.mechanism)
    options = experiment.optimizer
    optimizer = make_optimizer(options.name, options.learning_rate, options.options)
    loader = loader or Loader(data, model)
    dataset = loader.dataset(experiment)
    check_classes(dataset)
    ensemble.check(experiment, method, init, dataset.kind)
    owners = partition.partition(dataset, experiment.partition, experiment.seed)
    rows = [np.concatenate(owners.train)] if method.pooled else owners.train
    expected = experiment.batch_size * (len(owners.train) if method.pooled else 1)
    check_sizes(rows, ("everyone",) if method.pooled else owners.names, expected)
    cohort_size = cohort_size_of(experiment, len(rows), method)
    loaded = loader.model(experiment, dataset.class_names)
    injected = inject(experiment, loaded)
    rates = rates_of(experiment)
    noise = (1.0,) if rates is None else tuple(map(float, rates.noise))
    schedule = Schedule(experiment.rounds, experiment.local_steps, expected, noise)
    encoded = loader.encoded(experiment, dataset, loaded)
    if dataset.kind == "instructions":
        prompt_room(loaded, experiment.model)  # found missing now, not after the last round
    begin = {} if loaded.start is None else loaded.start.adapters
    frozen, state = initial_state(injected, method, init, experiment, len(rows), begin)
    whole = host_data(encoded.inputs, dataset.labels, encoded.lengths, rows)
    task = task_of(dataset.kind)
    who = partial(_sites_and_presence, experiment, method, owners.names, expected)
    sites, presence, step_flops = who(injected, task, frozen, state, whole, encoded)
    if sites is not None:
        steps, batches = (tuple(map(int, x)) for x in (sites.local_steps, sites.batch_size))
        schedule = schedule._replace(client_steps=steps, client_batches=batches)
    mechanism = make_mechanism(experiment.replace(batch_size=expected, cohort_size=cohort_size))
    plan = mechanism.plan([len(r) for r in rows], schedule, multipliers)
    server = make_server(
        experiment, method, mechanism, plan, cohort_size, redraw(injected, method, init)
    )
    numbers = ClientNumbers(
        np.asarray([threshold(c.sampling.probability) for c in plan.clients], np.uint32),
        np.asarray([c.noise_multiplier for c in plan.clients], np.float32),
        *own_numbers(sites, experiment),
    )
    settings = RoundSettings(
        num_clients=len(rows),
        cohort_size=num_asked(experiment, cohort_size, len(rows)),
        cohort_sampling=experiment.cohort_sampling,
        chunk=1,
        weights=experiment.weights,
        rounds_per_call=min(experiment.evaluate_every, experiment.rounds),
        secret_cohort=plan.unit == "client",
        monitor=experiment.monitor.on,
        presence=presence,
    )
    mesh = make_mesh(experiment.mesh, settings.slots(1))
    remembers = experiment.optimizer.control_variates or mechanism.correlated is not None
    settings = where_data_lies(experiment, settings, whole, remembers)
    frozen = Frozen(backbone_on(mesh, frozen.backbone), *replicated(mesh, (frozen.adapters, rates)))
    slots = settings.slots(num_shards(mesh)) // num_shards(mesh)
    client_bytes = partial(_client_bytes, injected, task, frozen, state, encoded)
    least = min(plan.capacity, LEAST_AT_ONCE) if experiment.packing else plan.capacity
    choice = choose(experiment.client_chunk, slots, frozen.backbone, lambda: client_bytes(least))
    settings = settings._replace(chunk=choice.chunk)
    blocks, packing = Blocks(plan.capacity, encoded.widths[-1:]), None
    if experiment.packing:
        example_bytes = lambda: client_bytes(1) - client_bytes(0)  # noqa: E731
        blocks, packing = arrange(
            encoded, injected, plan.capacity, expected, choice.chunk, example_bytes
        )
    is_dealt = settings.by_slot and settings.slots(1) < len(rows)
    seen = Seen(injected, frozen.backbone, encoded, loaded.own, is_dealt)
    work = np.unique(np.concatenate(rows)), schedule.steps * expected * cohort_size

    def place(data):
        return data if settings.by_slot else replicated(mesh, jax.tree.map(jnp.asarray, data))

    where = settings.by_slot, mesh
    prefix, prefix_note = loader.prefix(experiment, seen, dataset.held_out, *work, place, where)
    whole = whole._replace(prefix=prefix)
    state = dataclasses.replace(
        state,
        adapters=replicated(mesh, state.adapters),
        round_index=replicated(mesh, state.round_index),
        server=replicated(mesh, server.begin(state.adapters)),
        clip_factor=None if mechanism.adapt is None else replicated(mesh, jnp.float32(1)),
        **replicated(mesh, memories(experiment, method, mechanism, state, len(rows))),
        late=replicated(mesh, nobody_late(server, state.adapters, len(rows)))
        if experiment.sites.late_weight
        else None,
    )
    personal = jax.tree.map(np.array, state.personal) if settings.by_slot else state.personal
    whole, numbers, personal = place((whole, numbers, personal))
    return Prepared(
        experiment,
        dataset,
        owners,
        encoded,
        task,
        loaded,
        injected,
        method,
        mechanism,
        plan,
        whole,
        numbers,
        frozen,
        dataclasses.replace(state, personal=personal),
        settings,
        choice.reason,
        blocks,
        packing,
        mesh,
        prefix_note,
        optimizer,
        server,
        sites,
        step_flops,
    )


def _sites_and_presence(
    experiment: Experiment,
    method: Method,
    names: tuple[str, ...],
    expected: int,
    model: LoraModel,
    task: Task,
    frozen: Frozen,
    state: RoundState,
    data: ClientData,
    encoded: Encoded,
) -> tuple[Sites | None, Presence | None, float]:
    """Returns the sites, who of them is there and in time, and the operations of a local step."""
    sites = None if method.pooled else sites_of(experiment, names)
    if sites is None:
        return None, None, 0.0
    mine = jax.tree.map(lambda leaf: leaf[0], state.personal)
    one = flops.of_example(model, task, frozen, leaves.merge(state.adapters, mine), data)
    # At max_tokens, whatever the texts: who comes too late may depend on no example.
    step = one * expected
    wanted = experiment.cohort_size or len(names)
    return *presence_of(experiment, method, sites, step, state.adapters, wanted), step


def _client_bytes(
    model: LoraModel, task: Task, frozen: Frozen, state: RoundState, encoded: Encoded, examples: int
) -> int:
    """Estimates what one more client takes while so many of its examples are computed at once."""
    mine = jax.tree.map(lambda leaf: leaf[0], state.personal)
    trained = leaves.merge(state.adapters, mine)
    return bytes_per_client(model, task, frozen, trained, encoded, examples)
