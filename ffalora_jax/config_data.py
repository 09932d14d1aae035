"""Settings of the examples: which they are, who owns them, what is held out. See ``config``."""

from dataclasses import dataclass
from typing import Annotated

from typing_extensions import Doc

from ffalora_jax.errors import InputError, between, one_of, positive

PARTITIONS = ("natural", "iid", "proportions", "dirichlet", "quantity")


@dataclass(frozen=True)
class DataConfig:
    """Which examples."""

    name: Annotated[
        str, Doc("data set: a name from `ffalora list datasets`, or module:function")
    ] = "vader"
    path: Annotated[
        str | None,
        Doc("file or directory: csv, jsonl, parquet, images, a TFDS data_dir, offline copies"),
    ] = None
    text: Annotated[str, Doc("column with the text")] = "text"
    text_pair: Annotated[str | None, Doc("column with a second text (pairs), if any")] = None
    label: Annotated[str, Doc("column with the class, as a number or a word")] = "label"
    prompt: Annotated[str, Doc("instructions: column with what the model is given")] = "prompt"
    response: Annotated[str, Doc("instructions: column with what it is to say")] = "response"
    messages: Annotated[
        str, Doc("instructions: column with chat messages, in place of prompt and response")
    ] = "messages"
    client: Annotated[
        str | None, Doc("column that says whose example it is; makes the natural partition")
    ] = None
    max_examples: Annotated[
        int | None, Doc("keep at most so many examples, drawn from the seed; unset: all")
    ] = None

    def __post_init__(self):
        positive(**{"data.max_examples": self.max_examples})


@dataclass(frozen=True)
class PartitionConfig:
    """Who owns which example, and what is held out."""

    name: Annotated[
        str, Doc("natural (by the client column), iid, proportions, dirichlet or quantity")
    ] = "natural"
    num_clients: Annotated[int, Doc("number of clients (natural: as many as the data has)")] = 4
    dirichlet_alpha: Annotated[
        float, Doc("dirichlet: concentration, small = each client sees few classes")
    ] = 0.5
    proportions: Annotated[
        str, Doc("proportions: one row of class weights a client, e.g. '.1 .9, .9 .1, .5 .5'")
    ] = ".1 .9, .9 .1, .5 .5"
    quantity_skew: Annotated[
        float, Doc("quantity: client k's size is proportional to (k+1)^-skew")
    ] = 1.0
    validation_share: Annotated[float, Doc("share of each client kept for choosing settings")] = 0.1
    test_share: Annotated[float, Doc("share of each client kept for the final figure")] = 0.2
    public_site: Annotated[
        str | None,
        Doc("natural: a site whose examples are public; not trained on, ensembles choose by them"),
    ] = None

    def __post_init__(self):
        one_of(PARTITIONS, **{"partition.name": self.name})
        positive(
            **{
                "partition.num_clients": self.num_clients,
                "partition.dirichlet_alpha": self.dirichlet_alpha,
            }
        )
        between(0, 1, **{"partition.validation_share": self.validation_share})
        between(0, 1, **{"partition.test_share": self.test_share})
        between(0, 10, **{"partition.quantity_skew": self.quantity_skew})
        if self.public_site is not None and self.name != "natural":
            raise InputError(
                f"Expected partition.name = 'natural' with partition.public_site = {self.public_site!r}, got "
                f"{self.name!r}: sites are those of the client column (--data.client)."
            )
        if self.validation_share + self.test_share >= 1:
            raise InputError(
                "Expected partition.validation_share + partition.test_share < 1, got "
                f"{self.validation_share} + {self.test_share}: nothing would be left to train on."
            )
