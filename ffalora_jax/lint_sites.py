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


def never_there(run: Prepared) -> list[Finding]:
    """Sites that no round ever meets."""
    presence = run.settings.presence
    if presence is None:
        return []
    away = np.flatnonzero(np.asarray(presence.available).max(0) == 0)
    if not away.size:
        return []
    return [
        Finding(
            "site-never-there",
            f"{_named(run, away)} are never there by sites.available or sites.trace, so their data moves "
            "nothing: leave them out, or say when they are there.",
            WHERE,
        )
    ]


def always_late(run: Prepared) -> list[Finding]:
    """Sites none of whose uploads can count: they give their data for nothing."""
    presence, config = run.settings.presence, run.experiment.sites
    if presence is None or config.deadline is None:
        return []
    last = config.deadline * (2 if config.late_weight else 1)
    fastest = np.asarray(presence.seconds).min(0)
    late = np.flatnonzero(fastest > last)
    if not late.size:
        return []
    ways = []
    if config.adapt == "none":
        ways.append("--sites.adapt deadline gives each as many local steps as it can do")
    if not config.late_weight:
        ways.append("--sites.late-weight counts what comes within twice the deadline")
    ways.append("or raise it")
    return [
        Finding(
            "site-always-late",
            f"{_named(run, late)} can never be done within {last:g} s (sites.deadline = "
            f"{config.deadline:g}), so their data moves nothing; the slowest takes {fastest.max():.3g} s: "
            f"{'; '.join(ways)}.",
            WHERE,
        )
    ]


def divided_by_those_asked(run: Prepared) -> list[Finding]:
    """Updates that are smaller than the mean of those who come."""
    presence = run.settings.presence
    if presence is None or run.plan.unit != "client":
        return []
    in_time = (np.asarray(presence.seconds) <= presence.deadline).mean(0)
    share = float((np.asarray(presence.available).mean(0) * in_time).mean())
    if share > 0.99 or share == 0:
        return []
    asked = run.server.clients
    return [
        Finding(
            "divided-by-those-asked",
            f"of {asked} sites asked about {share * asked:.3g} come, and under client-level privacy their "
            f"sum is divided by {asked}: every update is {share:.2g} of their mean, its noise as it was. "
            f"Take --server.optimizer sgd --server.learning-rate {1 / share:.3g}, or sites that are there.",
            WHERE,
            "note",
        )
    ]


def deadline_of_like_sites(run: Prepared) -> list[Finding]:
    """A deadline where nothing is known of machines and links."""
    config, presence = run.experiment.sites, run.settings.presence
    told = config.speed, config.up, config.down, config.latency, config.loss
    if config.deadline is None or presence is None or config.preset != "none" or any(told):
        return []
    if np.ptp(np.asarray(presence.seconds), axis=1).any():  # of unlike steps, batches or ranks
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


def _named(run: Prepared, which: np.ndarray) -> str:
    names = [run.owners.names[k] for k in which[:MOST_NAMED]]
    more = ", ..." * (len(which) > MOST_NAMED)
    return f"{len(which)} of {len(run.owners.names)} sites ({', '.join(names)}{more})"
