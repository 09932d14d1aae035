"""Settings of the sites: machines, links and presence. Public facts that change who takes part and when."""

from dataclasses import dataclass
from typing import Annotated

from typing_extensions import Doc

from ffalora_jax.errors import InputError, between, one_of, positive

PRESETS = ("none", "three-sites", "old-machines", "phones")
ADAPTS = ("none", "deadline")


@dataclass(frozen=True)
class SitesConfig:
    """The sites' machines and links: one number for all, one each (1, 10), or drawn (loguniform 1 100)."""

    preset: Annotated[
        str, Doc("none, three-sites, old-machines or phones: fills in what is left open below")
    ] = "none"
    speed: Annotated[
        str, Doc("GFLOP/s of a site; uniform LOW HIGH, loguniform LOW HIGH and choice A B draw it")
    ] = ""
    up: Annotated[str, Doc("Mbit/s from a site to the server")] = ""
    down: Annotated[str, Doc("Mbit/s from the server to a site")] = ""
    latency: Annotated[str, Doc("milliseconds that a message takes on top")] = ""
    loss: Annotated[str, Doc("share of a link's packets that are sent again")] = ""
    available: Annotated[str, Doc("probability that a site is there in a round")] = ""
    trace: Annotated[
        str | None,
        Doc("CSV, a column a site and a row a round, over and over: that probability by round"),
    ] = None
    sticky: Annotated[int, Doc("rounds that a site's presence, once drawn, lasts")] = 1
    local_steps: Annotated[str, Doc("local steps of a site, at most local_steps")] = ""
    batch_size: Annotated[
        str, Doc("expected examples of a site's draw, at most batch_size; not with dp_sgd_secagg")
    ] = ""
    rank: Annotated[
        str, Doc("rank of a site, at most method.rank, with hetlora, flexlora or flora")
    ] = ""
    deadline: Annotated[
        float | None,
        Doc(
            "simulated seconds after which a round ends; later uploads are dropped, or see late_weight"
        ),
    ] = None
    late_weight: Annotated[
        float,
        Doc(
            "weight in the next round of uploads that come within twice the deadline; 0 drops them. Whose "
            "upload is under way is not asked again"
        ),
    ] = 0.0
    over_select: Annotated[
        float, Doc("clients asked per client of cohort_size; the first to come are taken")
    ] = 1.0
    adapt: Annotated[
        str,
        Doc(
            "none, or deadline: each site takes the local steps that it can finish in time, and with "
            "hetlora, flexlora or flora first a lower rank"
        ),
    ] = "none"

    def __post_init__(self):
        one_of(PRESETS, **{"sites.preset": self.preset})
        one_of(ADAPTS, **{"sites.adapt": self.adapt})
        positive(**{"sites.deadline": self.deadline, "sites.sticky": self.sticky})
        between(1, 100, **{"sites.over_select": self.over_select})
        if self.over_select > 1 and self.late_weight:
            raise InputError(
                f"Expected sites.over_select = 1 with sites.late_weight, got {self.over_select:g}: to take "
                "the first to come is to let the others go, not to wait for them. Set one of the two."
            )
        if not 0 <= self.late_weight <= 1:
            raise InputError(f"Expected 0 <= sites.late_weight <= 1, got {self.late_weight}.")
        if self.late_weight and self.deadline is None:
            raise InputError("sites.late_weight needs sites.deadline, in seconds.")
        if self.adapt == "deadline" and self.deadline is None:
            raise InputError("sites.adapt = 'deadline' needs sites.deadline, in seconds.")

    @property
    def is_set(self) -> bool:
        """Whether anything is said about the sites at all."""
        return self != SitesConfig()

    @property
    def may_stay_away(self) -> bool:
        """Whether a site that is asked may not come, or too late."""
        present = self.available or self.preset == "phones" or self.trace is not None
        return bool(present) or self.deadline is not None or self.over_select > 1
