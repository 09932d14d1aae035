"""Memory of a big model: RoBERTa-large's size loaded, and trained for a round, each in a process of its own.

Claims: loading takes less than 1.3 times the files plus 1 GiB, and less than 20 s; one private round of
3 clients x 1 step x batch 2 x 64 tokens stays below 8 GiB on two cores.

Run: python experiments/benchmarks/big_models.py        Time: 2 minutes on two cores
Result: docs/memory.md. Weights are random; 1.4 GB of them are written to a temporary folder.

Measured: the largest resident set of a process (``getrusage``), with what stands in it after the imports.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GIB = 2**30
SHARDS = 5
ROBERTA_LARGE = {
    "architectures": ["RobertaForSequenceClassification"],
    "model_type": "roberta",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "vocab_size": 50265,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}


def main() -> None:
    """Runs every part in a child process, prints a table, and fails if a claim does not hold."""
    with tempfile.TemporaryDirectory() as folder:
        size = child("write", folder)["bytes"]
        print(f"RoBERTa-large's size: {size / GIB:.2f} GiB in {SHARDS} files, float32")
        load, one_round = child("load", folder), child("round", folder)
        stacked = child("round", folder, "stacked")
    most = 1.3 * size / GIB + 1
    rows = [
        ("load: GiB at the most", load["peak"], most),
        ("load: seconds", load["seconds"], 20.0),
        ("round: GiB at the most", one_round["peak"], 8.0),
        ("stacked, remat: the same", stacked["peak"], 8.0),
    ]
    print(
        f"after the imports {load['imports']:.2f} GiB; compiling {one_round['compile']:.0f} s, ",
        end="",
    )
    print(f"a round {one_round['seconds']:.1f} s; {one_round['examples']:.0f} examples drawn")
    for name, found in (("round", one_round), ("stacked, remat", stacked)):
        print(f"{name}: XLA {found['xla']:.2f} GiB, estimate {found['estimate']:.2f} GiB")
    for name, found, bound in rows:
        print(
            f"{name:26} {found:7.2f}  bound {bound:6.2f}  {'held' if found < bound else 'BROKEN'}"
        )
    if any(found >= bound for _, found, bound in rows):
        sys.exit("A bound does not hold.")


def child(part: str, *arguments: str) -> dict:
    """Runs one part of this file in a process of its own; returns what it measured."""
    # This process imports nothing large: a child's peak begins with what its parent holds.
    command = [sys.executable, __file__, part, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak() -> float:
    """Returns the largest resident set of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def write(folder: str) -> dict:
    """Writes config, tokenizer and weights in several files with an index."""
    import numpy as np
    from safetensors.numpy import save_file

    draw, shapes = np.random.default_rng(0), list(roberta_shapes(ROBERTA_LARGE).items())
    index, total = {}, 0
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {}
        for name, shape in shapes[shard::SHARDS]:
            values = draw.standard_normal(shape, np.float32) * np.float32(0.02)
            tensors[name] = values + np.float32(name.endswith("LayerNorm.weight"))
            index[name] = file
        save_file(tensors, Path(folder, file), metadata={"format": "pt"})
        total += Path(folder, file).stat().st_size
    Path(folder, "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    Path(folder, "config.json").write_text(json.dumps(ROBERTA_LARGE))
    write_tokenizer(Path(folder, "tokenizer.json"))
    return {"bytes": total}


def roberta_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Returns the tensors of a RoBERTa with its classification head, by name."""
    features, inner = config["hidden_size"], config["intermediate_size"]
    tables = {
        "word": config["vocab_size"],
        "position": config["max_position_embeddings"],
        "token_type": config["type_vocab_size"],
    }
    shapes = {f"embeddings.{kind}_embeddings.weight": (n, features) for kind, n in tables.items()}
    dense, norms = {}, ["embeddings.LayerNorm"]
    for index in range(config["num_hidden_layers"]):
        block = f"encoder.layer.{index}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            dense[f"{block}.attention.{part}"] = (features, features)
        dense[f"{block}.intermediate.dense"] = (inner, features)
        dense[f"{block}.output.dense"] = (features, inner)
        norms += [f"{block}.attention.output.LayerNorm", f"{block}.output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (features,), f"{name}.bias": (features,)}
    for name, shape in dense.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    head = {"dense": (features, features), "out_proj": (2, features)}
    shapes = {f"roberta.{name}": shape for name, shape in shapes.items()}
    for name, shape in head.items():
        shapes |= {f"classifier.{name}.weight": shape, f"classifier.{name}.bias": shape[:1]}
    return shapes


def write_tokenizer(file: Path) -> None:
    """Writes a tokenizer of a hundred words, whole words only."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "<pad>", "<unk>", *(f"w{index}" for index in range(100))]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(file))


def load(folder: str) -> dict:
    """Loads the checkpoint as a run does, hashes included."""
    import jax
    from flax import nnx

    from ffalora_jax import pretrained

    imports, begin = peak(), time.perf_counter()
    loaded = pretrained.load(folder, 2, 0)
    jax.block_until_ready(nnx.state(loaded.model))
    return {"imports": imports, "seconds": time.perf_counter() - begin, "peak": peak()}


def one_round(folder: str, form: str = "") -> dict:
    """Prepares, compiles and runs one private round."""
    import jax
    import jax.numpy as jnp

    import ffalora_jax as ffa
    from ffalora_jax import memory, rng
    from ffalora_jax.prepare import prepare
    from ffalora_jax.round import Keys

    experiment = ffa.Experiment(rounds=1, local_steps=1, batch_size=2, evaluate_every=1).replace(
        **{
            "model.name": folder,
            "model.max_tokens": 64,
            "model.scan_layers": form == "stacked",
            "model.remat": form == "stacked",
            "partition.name": "iid",
            "partition.num_clients": 3,
            "privacy.noise_multiplier": 1.0,
            "privacy.delta": 1e-3,
        }
    )
    texts = [" ".join(f"w{(7 * i + j) % 100}" for j in range(64)) for i in range(60)]
    data = {"text": texts, "label": [index % 2 for index in range(60)]}
    run = prepare(experiment, data)
    keys = Keys(rng.public_root(0), rng.secret_root(0))
    arguments = (keys, run.state, run.frozen, run.data, run.numbers, jnp.int32(1))
    begin = time.perf_counter()
    compiled = run.rounds().lower(*arguments).compile()
    middle, xla = time.perf_counter(), compiled.memory_analysis()
    at_once = run.blocks.size if run.packing is None else run.packing.rows
    shape = {"tokens": 64, "examples": at_once}
    expected = memory.estimate(ROBERTA_LARGE, **shape, remat=experiment.model.remat)
    _, info = jax.block_until_ready(compiled(*arguments))
    return {
        "compile": middle - begin,
        "seconds": time.perf_counter() - middle,
        "peak": peak(),
        "xla": (xla.argument_size_in_bytes + xla.temp_size_in_bytes) / GIB,
        "estimate": expected.total / GIB,
        "examples": float(info.facts.clip.num_real.sum()),
    }


PARTS = {"write": write, "load": load, "round": one_round}

if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        print(json.dumps(PARTS[sys.argv[1]](*sys.argv[2:])))
