"""A checkpoint that cannot be used is refused in one line, with every tensor that does not fit."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax import load_pretrained
from tests.family_files import VIT, write_family
from tests.refusals import CHECKPOINT, FAST, assert_says


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty place to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "vocab_size": 50,
}


def tensors_of_bert():
    """All tensors of a one-layer BertModel, by their published names."""
    width, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    layer, shapes = "encoder.layer.0.", {}
    dense = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
    dense |= {"attention.output.dense": (width, width)}
    dense |= {"intermediate.dense": (inner, width), "output.dense": (width, inner)}
    for name, shape in dense.items():
        shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
    norms = ["attention.output.LayerNorm", "output.LayerNorm"]
    for name in ["embeddings.LayerNorm", *(layer + norm for norm in norms)]:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for name, rows in {
        "word": SIZES["vocab_size"],
        "position": SIZES["max_position_embeddings"],
        "token_type": 2,
    }.items():
        shapes[f"embeddings.{name}_embeddings.weight"] = (rows, width)
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def checkpoint(here):
    """Writes a checkpoint folder; the tensors can be changed before."""

    def write(**tensors):
        from safetensors.numpy import save_file

        folder = here / "checkpoint"
        folder.mkdir()
        config = {"architectures": ["BertModel"], **SIZES}
        (folder / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "model.safetensors")
        return folder

    return write


def test_the_checkpoint_of_these_tests_is_a_good_one(checkpoint):
    model = load_pretrained(checkpoint(**tensors_of_bert()), num_classes=3)
    ids = jnp.ones((2, 5), int)
    assert model(ids, ids).shape == (2, 3)


QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({QUERY: None}, ["layers.0.attention.query.kernel", "missing"]),
        ({QUERY: np.zeros((8, 7), np.float32)}, ["query.kernel", "(7, 8)", "(8, 8)"]),
        ({QUERY: np.full((8, 8), np.inf, np.float16)}, ["query.weight", "not finite"]),
        ({QUERY: np.full((8, 8), np.nan, np.float32)}, ["query.weight", "not finite"]),
        ({"encoder.gate.weight": np.zeros(3, np.float32)}, ["encoder.gate.weight"]),
        ({QUERY.replace("layer.0", "layer.1"): np.zeros((8, 8), np.float32)}, ["layer", "1"]),
        (
            {
                QUERY: None,
                "embeddings.LayerNorm.bias": np.zeros(9, np.float32),
                "gate": np.zeros(1),
            },
            ["query.kernel", "norm.bias", "(9,)", "gate"],
        ),
    ],
    ids=["missing", "misshapen", "overflowed", "NaN", "extra", "extra layer", "all at once"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_every_tensor(
    changes, words, checkpoint, refused
):
    tensors = {name: x for name, x in {**tensors_of_bert(), **changes}.items() if x is not None}
    checkpoint(**tensors)
    assert_says(refused(f"{CHECKPOINT} checkpoint"), ["model.safetensors", *words])


def test_pickled_weights_are_not_read(checkpoint, refused):
    folder = checkpoint(**tensors_of_bert())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert_says(
        refused(f"{CHECKPOINT} checkpoint"), ["model.safetensors", "pytorch_model.bin", "not read"]
    )


def test_a_broken_weight_file_is_refused(checkpoint, refused):
    (checkpoint(**tensors_of_bert()) / "model.safetensors").write_bytes(b"not safetensors")
    assert_says(
        refused(f"{CHECKPOINT} checkpoint"), ["model.safetensors", "not a safetensors file"]
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["config.json", "Cannot read"]),
        ("{", ["config.json", "not JSON"]),
        ("{}", ["config.json", "'architectures'"]),
        ('{"architectures": ["GPT2LMHeadModel"]}', ["GPT2LMHeadModel", "BertModel"]),
        ('{"architectures": ["BertModel"]}', ["config.json", "hidden_size"]),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(content, words, checkpoint, refused):
    file = checkpoint(**tensors_of_bert()) / "config.json"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    assert_says(refused(f"{CHECKPOINT} checkpoint"), words)


def test_a_checkpoint_without_a_tokenizer_is_refused(checkpoint, refused):
    checkpoint(**tensors_of_bert())
    assert_says(refused(f"{CHECKPOINT} checkpoint"), ["tokenizer.json"])


def test_an_unsupported_family_names_the_others_and_the_way_to_bring_ones_own(checkpoint, refused):
    file = checkpoint(**tensors_of_bert()) / "config.json"
    file.write_text('{"architectures": ["T5ForConditionalGeneration"]}')
    line = refused(f"{CHECKPOINT} checkpoint")
    known = ["BertModel", "RobertaModel", "ViTModel", "LlamaForCausalLM"]
    assert_says(line, ["T5ForConditionalGeneration", *known, "model=mine"])


def test_a_vocabulary_larger_than_the_embedding_is_refused(checkpoint, refused):
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = checkpoint(**tensors_of_bert())
    words = {"[PAD]": 0, "[UNK]": SIZES["vocab_size"] + 7, "[CLS]": 2, "[SEP]": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    assert_says(refused(f"{CHECKPOINT} checkpoint"), ["id 57", "50 rows"])


def test_texts_for_a_model_of_images_are_refused(here, refused):
    write_family(here / "vit", VIT)
    assert_says(refused(f"{CHECKPOINT} ./vit"), ["images", "text"])


def test_an_image_size_that_the_patch_does_not_divide_is_refused(here, refused):
    from PIL import Image

    write_family(here / "vit", VIT, image_size=14)
    for name in ("cat", "dog"):
        (here / "photos" / name).mkdir(parents=True)
        for number in range(30):
            Image.new("RGB", (9, 9), (number, 0, 0)).save(here / "photos" / name / f"{number}.png")
    command = f"run --data.name images --data.path photos --partition.name iid {FAST}"
    assert_says(refused(f"{command} --model.name ./vit"), ["patch_size 4", "14"])


def test_a_label_outside_the_classes_of_a_prepared_set_is_refused_with_its_line(here, refused):
    rows = [{"idx": i, "sentence": f"film {i}", "label": i % 2} for i in range(4)]
    rows[2]["label"] = 5
    for part in ("train", "validation"):
        (here / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = refused("prepare glue/sst2 --from . --to tfds")
    assert_says(line, ["Line 3", "label 5"])


def test_a_family_is_no_checkpoint_even_where_a_folder_has_its_name(here, refused):
    write_family(here / "vit", VIT)
    assert_says(refused(f"{CHECKPOINT} vit"), ["is a family", "./vit"])
