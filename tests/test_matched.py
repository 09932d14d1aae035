"""Methods that are compared train about as many numbers, counted where they are."""

import pytest

from ffalora_jax.errors import InputError
from ffalora_jax.loader import Loader
from ffalora_jax.matched import trained_numbers, with_matched_rank
from ffalora_jax.prepare import prepare
from ffalora_jax.types import HEAD_LEAVES
from tests.test_sweep import small

LOADER = Loader()


def of(method, rank=4, **changes):
    return small(**{"method.name": method, "method.rank": rank}, **changes)


@pytest.mark.parametrize(
    "method", ["ffa_lora", "fedavg_lora", "fedsa_lora", "bitfit", "ravan", "fed_sb"]
)
def test_the_count_is_that_of_a_prepared_run(method):
    run = prepare(of(method), loader=LOADER)
    tables = run.state.adapters, run.state.personal
    found = sum(
        leaf[0].size if table is run.state.personal else leaf.size
        for table in tables
        for layer in table.values()
        for name, leaf in layer.items()
        if name in run.method.trained and name not in HEAD_LEAVES
    )
    assert trained_numbers(of(method), LOADER) == found > 0


def test_plain_lora_gets_half_the_rank_of_ffa_lora():
    found = with_matched_rank(of("fedavg_lora", 8), of("ffa_lora", 8), LOADER)
    assert found.method.rank == 4
    assert found == of("fedavg_lora", 4)
    back = with_matched_rank(of("ffa_lora", 4), of("fedavg_lora", 4), LOADER)
    assert back.method.rank == 8


def test_a_core_of_rank_squared_gets_the_rank_that_comes_closest():
    reference = of("ffa_lora", 4)
    wanted = trained_numbers(reference, LOADER)
    found = with_matched_rank(of("fed_sb"), reference, LOADER)
    gaps = [
        abs(trained_numbers(of("fed_sb", found.method.rank + step), LOADER) - wanted)
        for step in (-1, 0, 1)
    ]
    assert gaps[1] == min(gaps)


def test_a_method_without_rank_cannot_be_matched():
    with pytest.raises(InputError, match=r"depend on method\.rank"):
        with_matched_rank(of("bitfit"), of("ffa_lora"), LOADER)
