"""The slow twin: one federated round in Python loops and NumPy, written from the formulas.

It shares with the package only what defines the randomness (``rng``) and the model's forward pass. Loops
run over clients, steps and examples; gradients of one example at a time come from ``jax.grad``; clipping,
noise, division, optimiser and averaging are NumPy in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ffalora_jax import rng


@functools.cache
def gradient_of(apply):
    """Returns the compiled gradient of one example's cross-entropy with respect to the trained leaves."""

    def loss(leaves, frozen, inputs, label):
        layers = {*frozen.adapters, *leaves}
        joined = {
            name: {**frozen.adapters.get(name, {}), **leaves.get(name, {})} for name in layers
        }
        logits = apply(frozen.backbone, joined, **inputs)
        return jax.nn.logsumexp(logits) - logits[label]

    return jax.jit(jax.grad(loss))


def example_gradient(apply, frozen, trained, inputs, label):
    """Returns one example's gradient as a flat dict of float64 arrays."""
    leaves = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), trained)
    return flat(gradient_of(apply)(leaves, frozen, inputs, label))


def flat(tree):
    """Turns nested leaves into {(layer, name): float64 array}."""
    return {
        (layer, name): np.asarray(leaf, np.float64)
        for layer, found in tree.items()
        for name, leaf in found.items()
    }


def nested(leaves):
    """The inverse of ``flat``."""
    tree = {}
    for (layer, name), leaf in leaves.items():
        tree.setdefault(layer, {})[name] = leaf
    return tree


def noise(base, leaves, stddev):
    """Returns noise for some leaves, one by one in sorted order, from the key of a documented stream."""
    drawn = {}
    for index, place in enumerate(sorted(leaves)):
        sample = jax.random.normal(
            jax.random.fold_in(base, index), leaves[place].shape, jnp.float32
        )
        drawn[place] = stddev * np.asarray(sample, np.float64)
    return drawn


def low_pass(place, leaf):
    """Returns a factor's gradient with the binomial window run over it, as one circle in PyTorch's order."""
    if place[1] not in ("lora_a", "lora_b"):
        return leaf
    circle = leaf.T.ravel()
    window = np.array([1, 4, 6, 4, 1]) / 16
    found = [
        sum(window[k] * circle[(i + k - 2) % circle.size] for k in range(5))
        for i in range(circle.size)
    ]
    return np.array(found).reshape(leaf.T.shape).T


def local_update(
    apply,
    frozen,
    start,
    data,
    batches,
    *,
    secret,
    round_index,
    client,
    clip_norm,
    noise_multiplier,
    expected,
    learning_rate,
    parts=(None,),
    smooth=lambda where, leaf: leaf,
    correction=None,
    seen=None,
):
    """Trains one client with SGD; ``batches`` is a list of lists of example rows. Returns its leaves.

    ``parts``: names of the leaves that a step trains, in turn; ``smooth`` turns a step's private gradients;
    ``correction`` is added to them, and ``seen``, a list, gets them as they were.
    """
    whole, outer = dict(start), frozen
    for step, rows in enumerate(batches):
        part = parts[step % len(parts)]
        leaves = {p: x for p, x in whole.items() if part is None or p[1] in part}
        held = nested({place: whole[place] for place in whole if place not in leaves})
        frozen = outer._replace(
            adapters={
                name: {**outer.adapters.get(name, {}), **held.get(name, {})}
                for name in {*outer.adapters, *held}
            }
        )
        total = {place: np.zeros_like(leaf) for place, leaf in leaves.items()}
        for row in rows:
            inputs = {name: leaf[row] for name, leaf in data.inputs.items()}
            gradient = example_gradient(
                apply, frozen, nested(leaves), inputs, int(data.labels[row])
            )
            norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
            if not np.isfinite(norm):
                continue
            scale = min(1.0, clip_norm / norm) if norm > 0 else 1.0
            for place in total:
                total[place] += scale * gradient[place]
        if noise_multiplier > 0:
            base = rng.stream(secret, rng.Purpose.NOISE, round_index, client, step)
            added = noise(base, leaves, noise_multiplier * clip_norm)
            total = {place: total[place] + added[place] for place in total}
        gradient = {place: smooth(place, total[place] / expected) for place in leaves}
        if seen is not None:
            seen.append(gradient)
        moved = correction or {}
        whole |= {
            place: leaf - learning_rate * (gradient[place] + moved.get(place, 0.0))
            for place, leaf in leaves.items()
        }
    return whole


def client_level(uploads, shared, *, base, clip_norm, noise_multiplier, clients):
    """Returns the server's mean of what the uploads moved: each clipped, noise on the sum, divided."""
    total = {place: np.zeros_like(leaf) for place, leaf in shared.items()}
    for upload in uploads:
        moved = {place: upload[place] - shared[place] for place in shared}
        norm = np.sqrt(sum((leaf**2).sum() for leaf in moved.values()))
        scale = min(1.0, clip_norm / norm) if norm > 0 else 1.0
        total = {place: total[place] + scale * moved[place] for place in total}
    added = noise(base, total, noise_multiplier * clip_norm)
    return {place: shared[place] + (total[place] + added[place]) / clients for place in total}


def federated_round(
    apply,
    frozen,
    shared,
    personal,
    data,
    cohort,
    batches,
    *,
    server,
    weights=None,
    central=None,
    sent=lambda upload: upload,
    **settings,
):
    """One round over a cohort. Returns (shared leaves, personal leaves by client).

    ``server(uploads, shares) -> shared leaves`` is the method's rule (``server_rules``). ``central``: clip
    norm, noise multiplier and expected clients of client-level DP; the clients' own steps have no noise then.
    ``sent``: what a client does to its leaves before it sends them.
    """
    uploads, personal = [], dict(personal)
    multipliers = settings.pop("noise_multipliers")
    for place, client in enumerate(cohort):
        start = {**flat(shared), **personal.get(client, {})}
        end = local_update(
            apply,
            frozen,
            start,
            data,
            batches[place],
            client=client,
            noise_multiplier=multipliers[client],
            **settings,
        )
        if personal:
            personal[client] = {where: end[where] for where in personal[client]}
        uploads.append(sent({where: end[where] for where in flat(shared)}))
    if central is not None:
        base = rng.stream(settings["secret"], rng.Purpose.SERVER_NOISE, settings["round_index"])
        mean = client_level(uploads, flat(shared), base=base, **central)
        return server([mean], np.ones(1)), personal
    if not uploads:
        return server([flat(shared)], np.ones(1)), personal
    shares = (
        np.ones(len(cohort)) if weights is None else np.array([weights[c] for c in cohort], float)
    )
    shares = shares / shares.sum()
    return server(uploads, shares), personal
