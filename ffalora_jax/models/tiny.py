"""A random BERT of 2 layers and 32 features: needs no download and runs in seconds on anything.

Words are hashed to 2,048 ids (``text.HashTokenizer``), so no vocabulary is learnt from anybody's data.
"""

from ffalora_jax.models import Model

CONFIG = {
    "architectures": ["BertModel"],
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "vocab_size": 2048,
    "position_stddev": 0.002,
}


def build() -> Model:
    """The preset: BERT's family at toy size, weights from the public seed."""
    return Model(family="bert", config=CONFIG)
