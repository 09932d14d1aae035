"""A pilot's audit: what the mechanism gave away at least, beside what it claims."""

from typing import Any

from ffalora_jax.audit import LEAST_CANARIES, audit
from ffalora_jax.errors import InputError
from ffalora_jax.loop import Event
from ffalora_jax.piloting import Piloting

SHARE = 0.25
"""Of the time left that an audit is expected to need at most; it takes about as long as a run or two."""


def audited(pilot: Piloting) -> dict[str, Any] | None:
    """Audits the experiment's own rounds; None where that was not asked for.

    Returns:
        claimed, lower_bound, delta, canaries, confidence; or why there is none.
    """
    asked = pilot.asked
    if asked.quick or asked.canaries < LEAST_CANARIES:
        return None
    if pilot.left < pilot.longest_run / SHARE:
        return {"why": "time"}
    pilot.observe(Event("auditing: rounds with canaries in them"))
    loader = pilot.many.loader
    try:
        found = audit(pilot.experiment, loader.data, model=loader.given, canaries=asked.canaries)
    except (InputError, ImportError) as error:
        return {"why": " ".join(str(error).split())}
    names = ("claimed", "lower_bound", "delta", "canaries", "confidence", "holds")
    return {name: getattr(found, name) for name in names}
