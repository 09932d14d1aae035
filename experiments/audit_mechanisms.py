"""Every mechanism audited, and five wrong ones: what a single run of 1,000 canaries shows of them.

The tiny model with LoRA on all dense layers of its blocks, one round of one step at a sampling rate of .96,
the noise calibrated to epsilon 2 at delta 1e-5; canaries as in ``ffalora_jax.audit``. Under dp_fedavg 1,000
clients of two texts are the canaries. A wrong mechanism claims what the right one claims.

Claim: the bounds of the right mechanisms stay below 2, those of the wrong ones pass it.
Run: python experiments/audit_mechanisms.py [TABLE.md]        Time: 3 minutes on two cores
Result: docs/audit.md
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from ffalora_jax import audit, clipping
from ffalora_jax.config import Experiment
from ffalora_jax.prepare import Prepared, prepare

CANARIES, EPSILON, BANDS = 1000, 2.0, 4


def example_level(mechanism: str = "dp_sgd") -> Prepared:
    """One client with about 1,100 training texts, nearly all of which are in the only draw.

    Where examples take turns: in the only draw of their group, one group a step.
    """
    steps = BANDS if mechanism == "dp_sgd_banded" else 1
    changes: dict[str, Any] = {
        "privacy.bands": BANDS,
        "data.name": "synthetic",
        "data.max_examples": 1600,
        "partition.name": "iid",
        "partition.num_clients": 1,
        "privacy.mechanism": mechanism,
    }
    return _prepared(Experiment(rounds=1, local_steps=steps, batch_size=1080 // steps), changes)


def client_level(mechanism: str = "dp_fedavg") -> Prepared:
    """A thousand clients of two texts, all of them asked."""
    changes = {
        "data.name": "synthetic",
        "data.max_examples": 4000,
        "partition.name": "iid",
        "partition.num_clients": CANARIES,
        "privacy.mechanism": mechanism,
    }
    return _prepared(Experiment(rounds=1, local_steps=1, batch_size=2), changes)


def _prepared(experiment: Experiment, changes: dict[str, Any]) -> Prepared:
    shape = {
        "model.name": "tiny",
        "model.max_tokens": 16,
        "method.name": "fedavg_lora",
        "method.rank": 24,
        "method.targets": ".*layers.*",
        "privacy.epsilon": EPSILON,
        "privacy.delta": 1e-5,
        "privacy.honest_share": 1.0,
    }
    experiment = experiment.replace(packing=False, prefix_cache="never", **shape, **changes)
    return prepare(experiment)


def without_noise(run: Prepared) -> Prepared:
    """The noise forgotten."""
    return _with_gradient(run, lambda key, total, noise: total)


def noise_of_the_mean(run: Prepared) -> Prepared:
    """Noise calibrated to the mean (clip norm over batch), and added to the sum."""
    right, expected = run.mechanism.private_grad, run.experiment.batch_size

    def private_grad(key, total, noise_multiplier):
        return right(key, total, noise_multiplier / expected)

    return run._replace(mechanism=run.mechanism._replace(private_grad=private_grad))


def all_in_every_step(run: Prepared) -> Prepared:
    """Correlated noise with the plan's bill, and draws that forget whose turn it is."""
    assert run.mechanism.correlated is not None
    wrong = run.mechanism.correlated._replace(bands=1)
    return run._replace(
        mechanism=run.mechanism._replace(correlated=wrong),
        plan=run.plan._replace(capacity=4 * run.plan.capacity),
    )


def clipped_after_averaging(run: Prepared) -> Prepared:
    """The mean gradient clipped, and no example's."""
    right, norm = run.mechanism.private_grad, run.mechanism.clip_norm
    expected = run.experiment.batch_size

    def private_grad(key, total, noise_multiplier):
        length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(total))) / expected
        scale = jnp.minimum(1.0, norm / length)
        return right(key, jax.tree.map(lambda leaf: scale * leaf, total), noise_multiplier)

    wrong = run.mechanism._replace(private_grad=private_grad, clip_norm=float("inf"))
    return run._replace(mechanism=wrong)


def _with_gradient(run: Prepared, made) -> Prepared:
    expected = run.experiment.batch_size

    def private_grad(key, total, noise_multiplier):
        return jax.tree.map(lambda leaf: leaf / expected, made(key, total, noise_multiplier))

    return run._replace(mechanism=run.mechanism._replace(private_grad=private_grad))


@contextlib.contextmanager
def clipped_per_tensor() -> Iterator[None]:
    """Every leaf of an example's gradient clipped by itself, to the whole clip norm."""

    def clipped_sum(example_loss, trained, examples, is_real, clip_norm, members=1):
        gradient = jax.vmap(jax.value_and_grad(example_loss), in_axes=(None, 0))
        losses, gradients = gradient(trained, examples)

        def total(leaf):
            norms = jnp.sqrt(jnp.sum(leaf.reshape(len(losses), -1) ** 2, axis=1))
            scale = jnp.minimum(1.0, clip_norm / jnp.maximum(norms, 1e-12))
            return jnp.einsum("e,e...->...", jnp.where(is_real, scale, 0.0), leaf)

        facts = clipping.facts_of(is_real, is_real, jnp.zeros(len(losses)), losses, clip_norm)
        return jax.tree.map(total, gradients), facts

    with mock.patch.object(clipping, "clipped_sum", clipped_sum):
        yield


def unbounded_uploads(run: Prepared) -> Prepared:
    """Client-level DP that forgets to clip what a client sends."""

    def private_update(moved, factor):
        return moved, jnp.float32(0)

    wrong = run.mechanism._replace(private_update=private_update)
    return run._replace(mechanism=wrong, server=run.server._replace(mechanism=wrong))


def judged(run: Prepared, noise_seed: int | None = None) -> audit.Audit:
    """Audits a prepared run."""
    count = CANARIES
    if run.plan.unit == "example":
        count = min(CANARIES, int(run.data.sizes[0]))
    scores, inserted = audit.scored(run, count, 0, noise_seed)
    return audit.judged(run, scores, inserted, 0, 0.95)


def all_judged() -> dict[str, audit.Audit]:
    """Audits them all."""
    examples, clients = example_level(), client_level()
    found = {"dp_sgd": judged(examples), "dp_fedavg": judged(clients)}
    for name in ("dp_sgd_adaptive", "dp_sgd_secagg"):
        found[name] = judged(example_level(name))
    banded = example_level("dp_sgd_banded")
    found["dp_sgd_banded, four steps"] = judged(banded)
    found["dp_fedavg_adaptive"] = judged(client_level("dp_fedavg_adaptive"))
    found["noise forgotten"] = judged(without_noise(examples))
    found["noise of the mean, on the sum"] = judged(noise_of_the_mean(examples))
    found["clipped after averaging"] = judged(clipped_after_averaging(examples))
    with clipped_per_tensor():
        found["clipped tensor by tensor"] = judged(examples)
    found["dp_sgd_banded, every example in every step"] = judged(all_in_every_step(banded))
    found["dp_fedavg, uploads not clipped"] = judged(unbounded_uploads(clients))
    return found


def main(table: Path) -> None:
    """Writes the table."""
    lines = [
        "# Audit",
        "",
        (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        "",
        "| mechanism | claimed epsilon | spent at least (95 %) | pairs in order | claim stands |",
        "|---|---|---|---|---|",
    ]
    for name, found in all_judged().items():
        print(name, found, flush=True)
        lines.append(
            f"| {name} | {found.claimed:.2f} | {found.lower_bound:.2f} | {found.auroc:.3f} | "
            f"{'yes' if found.holds else '**no**'} |"
        )
    lines += ["", *OTHERS]
    table.write_text("\n".join(lines) + "\n")


OTHERS = (
    "Made by `experiments/audit_mechanisms.py`. A bound below the claim proves nothing, one above it proves",
    "an error. What an audit cannot see is caught elsewhere: a noise key used twice, an accountant that is",
    "told half the steps and a personal head without noise are each made on purpose in",
    "`tests/test_broken.py`, beside the check that fails then.",
)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/audit.md"))
