"""What unequal sites give reason to say: part of ``lint``. All of it follows from public settings."""

import numpy as np

from ffalora_jax.findings import Finding
from ffalora_jax.prepare import Prepared

WHERE = "README, Sites as they are"
MOST_NAMED = 5


def pooled_sites(run: Prepared) -> list[Finding]:
    """Machines and links that nothing uses."""
    if not (run.method.pooled and run.experiment.sites.is_set):
        return []
    return [
        Finding(
            "pooled-data-has-no-sites",
            f"method.name = {run.experiment.method.name!r} trains on all data in one place: what [sites] "
            "says of machines, links, steps and batches is not used.",
            WHERE,
            "note",
        )
    ]


def always_late(run: Prepared) -> list[Finding]:
    """Sites none of whose uploads can count: they give their data for nothing."""
    presence, config = run.settings.presence, run.experiment.sites
    if presence is None or config.deadline is None:
        return []
    last = config.deadline * (2 if config.late_weight else 1)
    fastest = np.asarray(presence.seconds).min(0)
    late = [run.owners.names[k] for k in np.flatnonzero(fastest > last)]
    if not late:
        return []
    named = ", ".join(late[:MOST_NAMED]) + (", ..." if len(late) > MOST_NAMED else "")
    return [
        Finding(
            "site-always-late",
            f"{len(late)} of {len(fastest)} sites ({named}) can never be done by sites.deadline = "
            f"{config.deadline:g} s, so their data moves nothing; the slowest takes {fastest.max():.3g} s. "
            "--sites.adapt deadline gives each as many local steps as it can do; --sites.late-weight "
            "counts what comes within twice the deadline.",
            WHERE,
        )
    ]


def deadline_of_like_sites(run: Prepared) -> list[Finding]:
    """A deadline where nothing is known of machines and links."""
    config = run.experiment.sites
    told = config.speed, config.up, config.down, config.latency
    if config.deadline is None or config.preset != "none" or any(told):
        return []
    return [
        Finding(
            "deadline-of-like-sites",
            f"sites.deadline = {config.deadline:g} s, and nothing is said of machines and links: each is "
            "taken for 100 GFLOP/s and 100 Mbit/s, so all sites come in time or none does. Set sites.speed, "
            "sites.up and sites.down, or sites.preset.",
            WHERE,
        )
    ]
