"""What many runs have in common, made once: data sets, models, encoded examples, what lies below adapters."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx

from ffalora_jax.cohort import Prefix
from ffalora_jax.config import Experiment
from ffalora_jax.data import Dataset
from ffalora_jax.load import encode, load_dataset, load_model, one_if_same
from ffalora_jax.prefix import Seen, is_worth, kept_prefix
from ffalora_jax.pretrained import Loaded
from ffalora_jax.text import Encoded


class Loader:
    """Data sets, models and whatever follows from them, each made once for all runs that share it."""

    def __init__(self, data: Any = None, model: nnx.Module | None = None):
        self.data, self.given = data, model
        self._kept: dict[tuple, Any] = {}
        self._expected: Counter[tuple] = Counter()

    def once(self, name: tuple, make: Callable[[], Any]) -> Any:
        """Returns what was made under that name, or makes it."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def dataset(self, experiment: Experiment) -> Dataset:
        """Does ``load_dataset``."""
        name = "dataset", repr(experiment.data), experiment.seed
        return self.once(name, lambda: load_dataset(experiment, self.data))

    def model(self, experiment: Experiment, num_classes: int) -> Loaded:
        """Does ``load_model``; what two seeds have in common is one array."""
        if experiment.model.scan_layers:  # ``inject`` takes the blocks out of the module
            return load_model(experiment, self.given, num_classes)
        settings = "model", repr(experiment.model), experiment.method.start, num_classes

        def load() -> Loaded:
            found = load_model(experiment, self.given, num_classes)
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

    def expect(self, experiments: Iterable[Experiment]) -> None:
        """Says what runs there will be: what lies below their adapters is kept where that pays for all.

        To be called with the runs that are done too: so a search that goes on decides as it did.
        """
        for name, count in Counter(map(self._below, experiments)).items():
            self._expected[name] = max(count, self._expected[name])

    def prefix(
        self,
        experiment: Experiment,
        seen: Seen,
        held_out: np.ndarray | None,
        rows: np.ndarray,
        draws: int,
        place: Callable[[Prefix], Prefix],
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
        """
        setting, every = experiment.prefix_cache, np.arange(len(seen.encoded.lengths))
        if held_out is not None:
            every = np.flatnonzero(~held_out)
        model = repr(experiment.model), seen.model.num_frozen
        name = "prefix", setting, *model, id(seen.encoded), seen.is_dealt

        def keep(setting, rows, draws):
            kept, note = kept_prefix(setting, seen, rows, draws)
            return kept if kept is None else place(kept), note

        together = self._expected[self._below(experiment)] * draws
        if setting != "never" and together > draws and is_worth(together, every):
            kept, note = self.once((*name, "all"), lambda: keep("auto", every, together))
            if kept is not None:
                return kept, f"{note} for all runs that share it"
        return self.once((*name, rows.tobytes(), draws), lambda: keep(setting, rows, draws))

    def _below(self, experiment: Experiment) -> tuple:
        """Returns the settings that what lies below the adapters follows from."""
        follows = self.data is None or experiment.data.max_examples is not None
        method = experiment.method
        placed = method.layers, method.targets, method.exclude, method.start
        models = repr(experiment.data), repr(experiment.model)
        return *placed, *models, experiment.seed if follows else None
