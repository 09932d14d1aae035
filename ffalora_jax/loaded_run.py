"""A finished (or stopped) run as an object: its figures, and its model for new texts."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ffalora_jax import lora
from ffalora_jax.adapter_file import read_adapter, read_facts
from ffalora_jax.client import Frozen
from ffalora_jax.data import as_dataset
from ffalora_jax.errors import InputError, nearest
from ffalora_jax.evaluate import client_adapters, make_predictor, softmax
from ffalora_jax.load import encode, inject, load_model
from ffalora_jax.pretrained import Loaded
from ffalora_jax.respond import make_responder
from ffalora_jax.round import RoundState
from ffalora_jax.run_folder import RunFolder
from ffalora_jax.tasks import classification
from ffalora_jax.types import Adapters


class Prediction(NamedTuple):
    """One text's class and the probabilities of all classes."""

    label: str
    probabilities: dict[str, float]


class Run:
    """What ``simulate`` and ``load_run`` return."""

    def __init__(self, folder: RunFolder, model: nnx.Module | None = None):
        self.folder, self._given = folder, model
        self.experiment = folder.experiment()
        self.metrics = folder.metrics()
        self.privacy = folder.read_json("privacy.json")
        self.communication = folder.read_json("communication.json")

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def warnings(self) -> list[str]:
        """What must not be overlooked; some of it looks at data without noise."""
        of_data = self.folder.read_json("partition.json").get("warnings", [])
        return [*self.privacy["warnings"], *of_data]

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the test part, of a run that ended."""
        return self.metrics[-1].get("test_accuracy") if self.metrics else None

    @property
    def epsilon(self) -> float | None:
        """Largest epsilon spent by a client; None without privacy."""
        return self.privacy["epsilon"]

    @property
    def seconds(self) -> float:
        """Seconds in the rounds, compilation and evaluation aside."""
        return sum(line["seconds"] for line in self.metrics)

    def frame(self) -> Any:
        """Returns the rounds as a pandas frame: a row a round, a column a figure of metrics.jsonl."""
        import pandas as pd

        return pd.DataFrame(self.metrics).set_index("round_index")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the logits."""
        return self.ready.class_names

    @property
    def kind(self) -> str:
        """What the run's model reads, one of ``text``, ``images`` and ``instructions``."""
        return self.folder.read_json("environment.json")["data_kind"]

    @property
    def reads_pairs(self) -> bool:
        """Whether the run was made on pairs of texts."""
        return self.folder.read_json("environment.json").get("data_pairs", False)

    def predict(
        self, inputs: Sequence, pairs: Sequence[str] | None = None, client: str | None = None
    ) -> list[Prediction]:
        """Classifies texts or images with the run's model.

        Args:
            inputs: what to classify: texts; or images as arrays, Pillow images, bytes or paths.
            pairs: second texts, if the model was trained on pairs.
            client: whose personal leaves to use, for methods that have them.

        Raises:
            InputError: nothing to classify, no adapter yet, another backbone than the run's, a missing
                client, a run that answers prompts (``generate``).
        """
        if isinstance(inputs, str) or len(inputs) == 0:
            raise InputError(f"Expected a list of at least one of the {self.kind}.")
        if self.kind == "instructions":
            raise InputError("This run's model answers prompts: use generate in place of predict.")
        if self.reads_pairs and pairs is None:
            raise InputError(
                "This run was made on pairs of texts: give the second ones too (pairs=..., or a CSV with "
                "both columns, --text and --text-pair)."
            )
        model = self.ready
        adapters = client_adapters(model.state, self._client_index(client))
        most = self.experiment.model.max_tokens
        return classify(model, adapters, self.kind, inputs, pairs, most)

    def generate(self, prompts: Sequence[Any], client: str | None = None) -> list[str]:
        """Answers prompts (texts, or lists of chat messages) by greedy decoding.

        Raises:
            InputError: no prompt, a run that classifies (``predict``), and as ``predict``.
        """
        if isinstance(prompts, str) or len(prompts) == 0:
            raise InputError("Expected a list of at least one prompt.")
        if self.kind != "instructions":
            raise InputError(
                f"This run's model classifies {self.kind}: use predict in place of generate."
            )
        model = self.ready
        respond = make_responder(model.lora, model.loaded, self.experiment.model)
        adapters = client_adapters(model.state, self._client_index(client))
        return respond(model.frozen, adapters, list(prompts))

    def _client_index(self, client: str | None) -> int:
        if client is None and not self.ready.client_names:
            return 0
        return self.ready.index_of(client)

    @cached_property
    def ready(self) -> "Ready":
        """The model with its leaves, loaded when first used."""
        try:
            return self._loaded()
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"The files in {self.path / 'adapter'} do not belong together or to this experiment "
                f"({type(error).__name__}: {error}): put the folder back from a copy."
            ) from error

    def _loaded(self) -> "Ready":
        facts = read_facts(self.path / "adapter")
        shared, personal, names = read_adapter(self.path / "adapter")
        settings = self.experiment
        class_names = facts["class_names"]
        loaded = load_model(settings, self._given, class_names)
        if loaded.fingerprint != facts["backbone"]:
            raise InputError(
                f"The backbone (weights and config.json) has sha256 {loaded.fingerprint[:12]}..., the run "
                f"was made with {facts['backbone'][:12]}...: put the same checkpoint there "
                "(and the same method.start)."
            )
        model = inject(settings, loaded)
        _check_all_there(model, shared, personal)
        state = RoundState(shared, personal, jnp.int32(0))
        return Ready(
            model,
            make_predictor(model, classification()),
            Frozen(model.backbone, {}),
            state,
            loaded,
            tuple(class_names),
            names,
        )


def _check_all_there(model: lora.LoraModel, shared: Adapters, personal: Adapters) -> None:
    """Raises KeyError where a leaf that the model reads is in no file, or the head is of other classes."""
    wanted = {layer: model.shapes[layer] for layer in model.adapted} | model.head
    for layer, leaves in wanted.items():
        there = personal.get(layer, {}) | shared.get(layer, {})
        for leaf in leaves:
            if leaf not in there:
                raise KeyError(f"no leaf '{layer}.{leaf}'")
    for leaf, begin in model.head.get("head", {}).items():
        found = (personal.get("head", {}) | shared.get("head", {}))[leaf].shape
        if found[-1] != begin.shape[-1]:
            raise KeyError(f"a head of {found[-1]} classes for {begin.shape[-1]} names")


class Ready(NamedTuple):
    """A model that can be asked, with its leaves."""

    lora: lora.LoraModel
    predict: Any
    frozen: Frozen
    state: RoundState
    loaded: Loaded
    class_names: tuple[str, ...]
    client_names: tuple[str, ...]
    """Of those whose leaves stay with them; none where all have one model."""

    def index_of(self, client: str | None) -> int:
        """Returns the number of a client whose leaves stay with it.

        Raises:
            InputError: no client of that name, or one model for all.
        """
        there = self.client_names
        if not there:
            raise InputError("All clients of this run have one model: leave --client away.")
        if client not in there:
            raise InputError(
                "This run has leaves that stay at each client: say whose with --client, one of "
                f"{', '.join(there)}; got {client!r}.{nearest(client or '', there)}"
            )
        return there.index(client)


def classify(
    ready: Ready,
    adapters: Any,
    kind: str,
    inputs: Sequence,
    pairs: Sequence[str] | None,
    max_tokens: int,
) -> list[Prediction]:
    """Returns the class of each text or image, with the probabilities of all classes."""
    columns: dict[str, Any] = {"image" if kind == "images" else "text": list(inputs)}
    columns |= {} if pairs is None else {"text_pair": list(pairs)}
    examples = as_dataset(columns, label=None, text_pair=None if pairs is None else "text_pair")
    encoded = encode(examples, ready.loaded, max_tokens)
    logits = ready.predict(ready.frozen, adapters, encoded, np.arange(len(inputs)))
    names = ready.class_names
    return [
        Prediction(names[int(row.argmax())], {n: float(p) for n, p in zip(names, row, strict=True)})
        for row in softmax(logits.astype(np.float64))
    ]


def load_run(path: str | Path, model: nnx.Module | None = None) -> Run:
    """Opens a run folder; ``model`` is the NNX model that was given to ``simulate``, if one was.

    Raises:
        InputError: there is no run.
    """
    folder = RunFolder.open(path)
    if not (folder.path / "privacy.json").is_file():
        raise InputError(
            f"The run in {str(path)!r} stopped before its first round was saved: start it again."
        )
    return Run(folder, model)
