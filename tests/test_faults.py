"""The programs that break runs on purpose still know where a run is broken."""

import pytest

from tests.faults import child


@pytest.mark.parametrize("kind", ["run", "sweep", "pilot"])
@pytest.mark.parametrize("stage", child.places())
def test_each_stage_is_where_the_kills_look_for_it(stage, kind):
    owner, name = child.places(kind)[stage]
    assert callable(getattr(owner, name))
