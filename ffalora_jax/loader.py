"""What many runs have in common, made once: data sets, models, encoded examples, what lies below adapters."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from ffalora_jax.cohort import Prefix
from ffalora_jax.config import Experiment
from ffalora_jax.data import Dataset
from ffalora_jax.errors import InputError
from ffalora_jax.load import encode, load_dataset, load_model, one_if_same
from ffalora_jax.prefix import ScoredPrefix, Seen, is_worth, kept_prefix, scored_prefix
from ffalora_jax.pretrained import Loaded
from ffalora_jax.text import Encoded


class Loader:
    """Data sets, models and whatever follows from them, each made once for all runs that share it."""

    def __init__(self, data: Any = None, model: nnx.Module | None = None):
        self.data, self.given = data, model
        self._kept: dict[tuple, Any] = {}
        self._expected: list[tuple[Sequence[Experiment], float]] = []
        self._times: dict[tuple | None, float] = {}
        """Runs, in whole ones, by what their prefix follows from."""

    def once(self, name: tuple, make: Callable[[], Any]) -> Any:
        """Returns what was made under that name, or makes it."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def dataset(self, experiment: Experiment) -> Dataset:
        """Does ``load_dataset``; what two seeds have in common is one data set."""
        settings = "dataset", repr(experiment.data)

        def load() -> Dataset:
            found = load_dataset(experiment, self.data)
            others = (one for name, one in self._kept.items() if name[:2] == settings)
            return next((one for one in others if _is_same(one, found)), found)

        return self.once((*settings, experiment.seed), load)

    def model(self, experiment: Experiment, class_names: Sequence[str]) -> Loaded:
        """Does ``load_model``; what two seeds have in common is one array."""
        if experiment.model.scan_layers:  # ``inject`` takes the blocks out of the module
            return load_model(experiment, self.given, class_names)
        settings = "model", repr(experiment.model), experiment.method.start, tuple(class_names)

        def load() -> Loaded:
            found = load_model(experiment, self.given, class_names)
            other = next((one for name, one in self._kept.items() if name[:4] == settings), None)
            if other is not None:
                mine, theirs = nnx.state(found.model), nnx.state(other.model)
                nnx.update(found.model, jax.tree.map(one_if_same, mine, theirs))
            return found

        return self.once((*settings, experiment.seed), load)

    def encoded(self, experiment: Experiment, dataset: Dataset, loaded: Loaded) -> Encoded:
        """Does ``encode``."""
        most = experiment.model.max_tokens
        name = "encoded", id(dataset), loaded.fingerprint, most
        # The data set is kept, so that no other is given its id.
        return self.once(name, lambda: (encode(dataset, loaded, most), dataset))[0]

    def expect(self, experiments: Sequence[Experiment], share: float = 1.0) -> None:
        """Says what runs there will be: what lies below their adapters is kept where that pays for all.

        To be called with the runs that are done too, in the same order: so a search that goes on decides as
        it did. Of several calls the one that expects most of a kind counts.

        Args:
            experiments: one a run.
            share: of their rounds that they will make.
        """
        self._expected.append((experiments, share))

    def prefix(
        self,
        experiment: Experiment,
        seen: Seen,
        held_out: np.ndarray | None,
        rows: np.ndarray,
        draws: int,
        place: Callable[[Prefix], Prefix],
        where: tuple,
    ) -> tuple[Prefix | None, str]:
        """Does ``kept_prefix`` for a run; once for all runs that share it, if they compute enough together.

        Then it holds every example that any of them may train on, so the split may differ.

        Args:
            experiment: the run's.
            seen: what is kept follows from it.
            held_out: examples that no run trains on.
            rows: those that this run trains on.
            draws: how many examples it is expected to compute.
            place: puts what is kept where the run's data lies.
            where: names that place.
        """
        setting, every = experiment.prefix_cache, np.arange(len(seen.encoded.lengths))
        if setting == "never" or seen.model.num_frozen == 0:
            return kept_prefix(setting, seen, rows, draws)
        if held_out is not None:
            every = np.flatnonzero(~held_out)
        model = repr(experiment.model), seen.model.num_frozen
        name = "prefix", setting, *model, id(seen.encoded), seen.is_dealt, *where

        def keep(setting, rows, draws):
            kept, note = kept_prefix(setting, seen, rows, draws)
            return kept if kept is None else place(kept), note

        together = int(self._sharing(experiment) * draws)
        if together > draws and is_worth(together, every):
            kept, note = self.once((*name, "all"), lambda: keep("auto", every, together))
            if kept is not None:
                return kept, f"{note} for all runs that share it"
        if setting == "auto" and not is_worth(draws, rows):
            return kept_prefix(setting, seen, rows, draws)
        return self.once((*name, rows.tobytes()), lambda: keep(setting, rows, draws))

    def scored_prefix(
        self, experiment: Experiment, seen: Seen, rows: Callable[[], np.ndarray]
    ) -> ScoredPrefix | None:
        """Does ``prefix.scored_prefix`` where several runs share it: one for all, whatever each scores.

        Args:
            experiment: the run's.
            seen: what is kept follows from it.
            rows: returns those that this run scores.
        """
        if self._sharing(experiment) <= 1:
            return None
        model = repr(experiment.model), seen.model.num_frozen
        setting = experiment.prefix_cache
        name = "scored prefix", setting, *model, id(seen.encoded)
        return self.once(name, lambda: scored_prefix(setting, seen, rows()))

    def _sharing(self, experiment: Experiment) -> float:
        """Returns how many runs, in whole ones, share what lies below a run's adapters."""
        for experiments, share in self._expected:
            for name, count in Counter(map(self._below, experiments)).items():
                self._times[name] = max(self._times.get(name, 0.0), share * count)
        self._expected.clear()
        return self._times.get(self._below(experiment), 0.0)

    def _below(self, experiment: Experiment) -> tuple | None:
        """Returns what a run's prefix follows from; None if the run cannot be made."""
        method = experiment.method
        placed = method.layers, method.targets, method.exclude, experiment.prefix_cache
        try:
            dataset = self.dataset(experiment)
            loaded = self.model(experiment, dataset.class_names)
        except InputError:
            return None
        return *placed, repr(experiment.model), id(dataset), loaded.fingerprint


def _is_same(one: Dataset, other: Dataset) -> bool:
    """Whether two data sets hold the same examples."""
    facts = [(d.class_names, d.client_names, d.source, d.metric, [*d.inputs]) for d in (one, other)]
    arrays = [(d.labels, d.clients, d.held_out) for d in (one, other)]
    if facts[0] != facts[1] or any(
        (a is None) != (b is None) or (a is not None and not np.array_equal(a, b))
        for a, b in zip(*arrays, strict=True)
    ):
        return False
    # Images are compared by what holds them: to open all of them would take longer than it saves.
    return all(
        len(mine) == len(theirs)
        and all(a is b or (type(a) is str and a == b) for a, b in zip(mine, theirs, strict=True))
        for mine, theirs in zip(one.inputs.values(), other.inputs.values(), strict=True)
    )
