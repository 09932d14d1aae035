"""What rounds show of themselves: the formulas, nothing where sums alone are seen, and no other numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ffalora_jax as ffa
from ffalora_jax import monitor
from ffalora_jax.book import UNNOISED_FIELDS
from ffalora_jax.prepare import prepare
from tests.helpers import prepared, run_rounds


def normal(key, *shape):
    return jax.random.normal(key, shape)


def test_drift_and_the_products_gap_are_those_of_the_formulas(key):
    keys = jax.random.split(key, 4)
    a, b = normal(keys[0], 4, 9, 3), normal(keys[1], 4, 3, 7)
    before = {"x": {"lora_a": normal(keys[2], 9, 3), "lora_b": normal(keys[3], 3, 7)}}
    weights = jnp.asarray([1.0, 2.0, 0.0, 1.0])
    found = monitor.of_clients(before, {"x": {"lora_a": a, "lora_b": b}}, weights)
    p, a, b = (np.asarray(x, float) for x in (weights / 4, a, b))
    mean_a, mean_b = np.tensordot(p, a, 1), np.tensordot(p, b, 1)
    products = np.einsum("kir,kro->kio", a, b)
    whole = np.tensordot(p, products, 1)
    gap = np.linalg.norm(whole - mean_a @ mean_b) / np.linalg.norm(whole)
    assert float(found["product_gap"]) == pytest.approx(gap, rel=1e-4)
    apart = sum(
        pk * (((ak - mean_a) ** 2).sum() + ((bk - mean_b) ** 2).sum())
        for pk, ak, bk in zip(p, a, b, strict=True)
    )
    moved = ((mean_a - before["x"]["lora_a"]) ** 2).sum() + (
        (mean_b - before["x"]["lora_b"]) ** 2
    ).sum()
    assert float(found["drift"]) == pytest.approx(np.sqrt(apart / moved), rel=1e-4)


def test_equal_clients_neither_drift_nor_lose_anything(key):
    one = {"x": {"lora_a": normal(key, 9, 3), "lora_b": normal(key, 3, 7)}}
    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), one)
    found = monitor.of_clients(jax.tree.map(jnp.zeros_like, one), many, jnp.ones(3))
    assert float(found["drift"]) < 1e-5
    assert float(found["product_gap"]) < 1e-3


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.3, 1.2])
def test_the_angle_is_that_by_which_a_was_turned(angle, key):
    basis = np.linalg.qr(np.asarray(normal(key, 10, 4)))[0]
    before = basis[:, :2]
    turned = np.stack([basis[:, 0], np.cos(angle) * basis[:, 1] + np.sin(angle) * basis[:, 3]], 1)
    mixed = turned @ np.array([[2.0, 1.0], [0.5, -1.0]])  # the same space
    found = monitor.of_server(
        {"x": {"lora_a": jnp.asarray(before)}}, {"x": {"lora_a": jnp.asarray(mixed, jnp.float32)}}
    )
    assert float(found["angle_of_a"]) == pytest.approx(angle, abs=1e-5)


def test_the_effective_rank_counts_equal_directions(key):
    q = jnp.linalg.qr(normal(key, 12, 4))[0].T
    for count in (1, 3, 4):
        b = q * jnp.where(jnp.arange(4) < count, 5.0, 0.0)[:, None]
        found = monitor.of_server({"x": {"lora_b": b}}, {"x": {"lora_b": b}})
        assert float(found["rank_of_b"]) == pytest.approx(count, rel=1e-3)
    zero = {"x": {"lora_b": jnp.zeros((4, 12))}}
    assert float(monitor.of_server(zero, zero)["rank_of_b"]) == 0


@pytest.mark.thorough
def test_watching_changes_no_number_and_is_written_down(tmp_path):
    base = prepared(method="fedavg_lora").experiment.replace(
        rounds=2, evaluate_every=2, noise_seed=4
    )
    plain = ffa.simulate(base, out=tmp_path / "plain")
    seen = ffa.simulate(base.replace(**{"monitor.on": True}), out=tmp_path / "seen")
    assert [x["loss"] for x in plain.metrics] == [x["loss"] for x in seen.metrics]
    names = {"drift", "product_gap", "angle_of_a", "rank_of_b"}
    for line in seen.metrics:
        assert names <= set(line)
        assert line["product_gap"] > 0
    assert not names & set(plain.metrics[0])


def test_where_the_server_sees_sums_alone_no_single_upload_is_looked_at():
    base = prepared(mechanism="dp_fedavg", method="fedavg_lora").experiment
    run = prepare(base.replace(**{"monitor.on": True}))
    _, infos = run_rounds(run, 1)
    assert set(infos[0].monitor) == {"angle_of_a", "rank_of_b"}


@pytest.mark.thorough
def test_signal_to_noise_is_that_of_the_clipped_sums_layer_by_layer(tmp_path):
    """At ten times the noise a tenth is heard of the head; and never more than the clip norm allows."""
    base = prepared(method="fedavg_lora").experiment.replace(
        **{"rounds": 1, "evaluate_every": 1, "noise_seed": 4, "monitor.on": True}
    )
    loud = base.replace(**{"privacy.noise_multiplier": 10 * base.privacy.noise_multiplier})
    one, other = (
        ffa.simulate(each, out=tmp_path / name).metrics[0]["signal_to_noise"]
        for name, each in (("one", base), ("other", loud))
    )
    assert set(one) == set(prepared(method="fedavg_lora").model.shapes)
    head = one["head"]
    assert other["head"] == pytest.approx(head / 10, rel=0.5)
    run, clip = prepared(method="fedavg_lora"), base.privacy.clip_norm
    entries = sum(leaf.size for leaf in run.state.adapters["head"].values())
    largest = run.plan.capacity * clip
    assert head <= largest / (base.privacy.noise_multiplier * clip * entries**0.5)


@pytest.mark.thorough
def test_private_figures_leave_out_what_looks_at_training_data_without_noise(tmp_path):
    base = prepared().experiment.replace(
        **{"rounds": 2, "evaluate_every": 2, "noise_seed": 4, "monitor.on": True}
    )
    shown = ffa.simulate(base, out=tmp_path / "shown")
    hidden = ffa.simulate(base.replace(**{"monitor.private": True}), out=tmp_path / "hidden")
    for line, plain in zip(hidden.metrics, shown.metrics, strict=True):
        assert all(line[name] is None for name in UNNOISED_FIELDS)
        assert "signal_to_noise" not in line
        assert line["update_norm"] == plain["update_norm"]
        assert line["drift"] == plain["drift"]
    page = (tmp_path / "hidden" / "report.html").read_text()
    assert "share of examples clipped" not in page


def test_client_level_private_figures_leave_out_norms_of_uploads_before_their_noise(tmp_path):
    base = prepared(mechanism="dp_fedavg").experiment.replace(
        **{"rounds": 1, "evaluate_every": 1, "monitor.private": True}
    )
    (line,) = ffa.simulate(base, out=tmp_path / "run").metrics
    assert line["client_update_norms"] == []
    assert line["participants"] == [0, 1, 2, 3]


def test_the_gap_of_a_thawed_part_is_that_of_the_whole_product():
    """What of A is the same at all clients is linear in B: its part of the gap is zero."""
    draw = np.random.default_rng(0)
    frozen, thawed, b = (
        draw.standard_normal(shape).astype(np.float32) for shape in ((6, 2), (3, 6, 1), (3, 3, 5))
    )
    weights = jnp.ones(3)
    sent = {"x": {"thawed_a": jnp.asarray(thawed), "lora_b": jnp.asarray(b)}}
    found = monitor.of_clients(jax.tree.map(lambda leaf: leaf[0], sent), sent, weights)
    whole = np.concatenate([np.repeat(frozen[None], 3, 0), thawed], axis=2)
    apart = np.mean(whole @ b, 0) - whole.mean(0) @ b.mean(0)
    of_part = np.mean(thawed @ b[:, 2:], 0)
    ratio = np.linalg.norm(apart) / np.linalg.norm(of_part)
    assert float(found["product_gap"]) == pytest.approx(ratio, rel=1e-4)
