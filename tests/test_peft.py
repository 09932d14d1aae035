"""Adapters in PEFT's format: the same logits in PyTorch, both ways; the same bits; refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import save_file

import ffalora_jax as ffa
from ffalora_jax import adapter_file, peft_io
from ffalora_jax.errors import InputError
from tests.peft_files import (
    FAMILIES,
    MASK,
    case,
    hf_base,
    hf_inputs,
    hf_logits,
    logits_of,
    randomise,
    write,
)

quiet = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # inside PEFT
families = pytest.mark.parametrize("family", FAMILIES)
heads = pytest.mark.parametrize("head", ["trained", "frozen"])
VARIANTS = {
    "rslora": {"use_rslora": True, "targets": "qkvo"},
    "patterns": {
        "targets": "query,value,down",
        "rank_pattern": {"value": 2, r"layers\.0\.down": 3},
        "alpha_pattern": {"query": 1.5},
    },
    "one block": {"layers": "1", "targets": "qkvo"},
    "exclude": {"targets": r".*\.(query|key|up)", "exclude": "0.query"},
}


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def written(found, folder):
    """The case's adapter in PEFT's format."""
    folder.mkdir()
    adapter_file.write_peft(
        folder, peft_io.to_peft(found.settings, found.loaded, found.model, found.adapters)
    )
    return folder


def logits(family, back):
    return logits_of(family, back.model, back.adapters)


def in_peft(found, folder, **named):
    peft = pytest.importorskip("peft")
    return peft.PeftModel.from_pretrained(hf_base(found.family, found.directory, **named), folder)


def same_bits(one, other):
    assert one.keys() == other.keys()
    for layer, leaves in one.items():
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(leaf, other[layer][name])


@quiet
@heads
@families
def test_peft_gives_our_logits(family, head, tmp_path):
    """A frozen head is random here (seven classes in place of three): it travels as well."""
    classes = 3 if head == "trained" else 7
    found = case(write(tmp_path / "base", family), family, head, classes)
    model = in_peft(found, written(found, tmp_path / "adapter"), classes=classes)
    np.testing.assert_allclose(hf_logits(family, model), found.logits(), atol=1e-5)


@quiet
@pytest.mark.parametrize("name", VARIANTS)
def test_patterns_blocks_and_rslora_mean_the_same_in_peft_and_come_back(name, tmp_path):
    found = case(write(tmp_path / "base", "roberta"), "roberta", **VARIANTS[name])
    folder = written(found, tmp_path / "adapter")
    model = in_peft(found, folder)
    np.testing.assert_allclose(hf_logits("roberta", model), found.logits(), atol=1e-5)
    back = ffa.load_adapter(found.directory, folder)
    assert {n: (a.rank, a.scaling) for n, a in back.model.adapted.items()} == {
        n: (a.rank, a.scaling) for n, a in found.model.adapted.items()
    }
    np.testing.assert_allclose(logits("roberta", back), found.logits(), atol=1e-6)


@families
def test_a_and_b_come_back_bit_for_bit(family, tmp_path):
    found = case(write(tmp_path / "base", family), family)
    back = ffa.load_adapter(found.directory, written(found, tmp_path / "adapter"))
    same_bits(back.adapters, {n: found.adapters[n] for n in found.model.adapted})
    head = found.adapters.get("head")
    if head:
        np.testing.assert_array_equal(back.loaded.model.head.kernel[...], head["head_kernel"])
        np.testing.assert_array_equal(back.loaded.model.head.bias[...], head["head_bias"])


PEFT_TARGETS = {
    "bert": ["query", "value", "dense"],
    "roberta": ["query", "key"],
    "vit": ["q_proj", "fc1"],
    "llama": ["q_proj", "v_proj", "down_proj"],
}


def made_by_peft(family, folder, base, **more):
    """An adapter that PEFT made and saved, and its logits."""
    peft = pytest.importorskip("peft")
    task = {"vit": None, "llama": "CAUSAL_LM"}.get(family, "SEQ_CLS")
    head = {"modules_to_save": ["classifier"]} if family == "vit" else {}
    settings = {"r": 3, "lora_alpha": 5, "target_modules": PEFT_TARGETS[family]} | head | more
    model = peft.get_peft_model(base, peft.LoraConfig(task_type=task, **settings)).eval()
    randomise(model)
    model.save_pretrained(folder)
    return hf_logits(family, model)


@quiet
@families
def test_an_adapter_of_peft_gives_its_logits_here(family, tmp_path):
    directory = write(tmp_path / "base", family)
    expected = made_by_peft(family, tmp_path / "adapter", hf_base(family, directory))
    model = ffa.load_adapter(directory, tmp_path / "adapter")
    np.testing.assert_allclose(logits(family, model), expected, atol=1e-5)


@quiet
def test_pefts_patterns_rslora_and_chosen_layers_are_read(tmp_path):
    directory = write(tmp_path / "base", "bert")
    expected = made_by_peft(
        "bert",
        tmp_path / "adapter",
        hf_base("bert", directory),
        use_rslora=True,
        rank_pattern={"value": 2, "layer.1.attention.self.query": 5},
        alpha_pattern={"layer.0.*.query": 9},
        exclude_modules=r".*pooler.*|.*layer\.0\.output.*",
    )
    model = ffa.load_adapter(directory, tmp_path / "adapter")
    np.testing.assert_allclose(logits("bert", model), expected, atol=1e-5)


@quiet
def test_an_adapter_of_peft_on_a_bare_bert_keeps_its_pooler(tmp_path):
    """transformers makes a classifier of it on the pooler, we make mean pooling: its head decides."""
    directory = write(tmp_path / "base", "bert", architecture="BertModel")
    expected = made_by_peft("bert", tmp_path / "adapter", hf_base("bert", directory))
    model = ffa.load_adapter(directory, tmp_path / "adapter")
    np.testing.assert_allclose(logits("bert", model), expected, atol=1e-5)


@quiet
def test_narrow_types_of_peft_are_read(tmp_path):
    pytest.importorskip("peft")
    directory = write(tmp_path / "base", "roberta")
    base = hf_base("roberta", directory)
    made_by_peft("roberta", tmp_path / "adapter", base)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    narrow = {n: x.astype("bfloat16") for n, x in peft_io.load_file(str(file)).items()}
    save_file(narrow, str(file), metadata={"format": "pt"})
    peft = pytest.importorskip("peft")
    again = hf_base("roberta", directory)
    expected = hf_logits("roberta", peft.PeftModel.from_pretrained(again, file.parent).float())
    model = ffa.load_adapter(directory, file.parent)
    np.testing.assert_allclose(logits("roberta", model), expected, atol=1e-5)


def edited(folder, **config):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "use_dora = True: DoRA"),
        ({"bias": "lora_only"}, "bias 'none'.*'lora_only'"),
        ({"peft_type": "IA3"}, "peft_type 'LORA'.*'IA3'"),
        ({"modules_to_save": ["classifier", "embeddings"]}, "saves the modules embeddings"),
        ({"trainable_token_indices": [1]}, "token embeddings"),
        ({"lora_bias": True}, "biases of B"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model"),
        ({"layer_replication": [[0, 1]]}, "replicated layers"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern"),
        ({"lora_alpha": "much"}, "lora_alpha"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(config, words, tmp_path):
    found = case(write(tmp_path / "base", "roberta"), "roberta")
    edited(written(found, tmp_path / "adapter"), **config)
    with pytest.raises(InputError, match=words):
        ffa.load_adapter(found.directory, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {"roberta.embeddings.word_embeddings.lora_embedding_A": (3, 9)},
            "adapter of an embedding",
        ),
        (
            {"roberta.encoder.layer.9.attention.self.query.lora_A.weight": (4, 32)},
            "layer.9.*no place",
        ),
        (
            {"roberta.encoder.layer.0.attention.self.key.lora_A.weight": (4, 32)},
            "Only lora_a of layer",
        ),
        ({"classifier.out_proj.weight": (3, 9)}, r"head kernel has shape \(9, 3\)"),
        ({"roberta.encoder.layer.0.attention.self.query.lora_A.weight": (2, 32)}, "rank 2.*rank 4"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors, words, tmp_path):
    found = case(write(tmp_path / "base", "roberta"), "roberta")
    file = written(found, tmp_path / "adapter") / "adapter_model.safetensors"
    more = {f"base_model.model.{n}": jnp.ones(shape) for n, shape in tensors.items()}
    save_file(peft_io.load_file(str(file)) | more, str(file))
    with pytest.raises(InputError, match=words):
        ffa.load_adapter(found.directory, file.parent)


def test_missing_pickled_and_broken_files_are_refused(tmp_path):
    found = case(write(tmp_path / "base", "roberta"), "roberta")
    with pytest.raises(InputError, match=r"Cannot read.*adapter_config\.json"):
        ffa.load_adapter(found.directory, tmp_path)
    file = written(found, tmp_path / "adapter") / "adapter_model.safetensors"
    file.write_bytes(b"torch")
    with pytest.raises(InputError, match="not a safetensors file"):
        ffa.load_adapter(found.directory, file.parent)
    file.rename(file.with_name("adapter_model.bin"))
    with pytest.raises(InputError, match="could run code"):
        ffa.load_adapter(found.directory, file.parent)


def test_a_layer_without_a_place_in_peft_is_refused(tmp_path):
    found = case(write(tmp_path / "base", "vit"), "vit", targets="patches")
    with pytest.raises(InputError, match="no adapter for the layers patches"):
        written(found, tmp_path / "adapter")


@quiet
def test_a_bare_encoder_travels_as_its_encoder_and_a_head(tmp_path):
    torch = pytest.importorskip("torch")
    base = write(tmp_path / "base", "bert", architecture="BertModel")
    found = case(base, "bert")
    folder = written(found, tmp_path / "adapter")
    model = in_peft(found, folder, loader="AutoModel")
    head = {n: torch.tensor(np.asarray(x)) for n, x in peft_io.read_peft(folder).head.items()}
    with torch.no_grad():
        hidden = model(**hf_inputs("bert")).last_hidden_state
    mask = torch.tensor(MASK[..., None].astype(np.float32))
    theirs = (hidden * mask).sum(1) / mask.sum(1) @ head["weight"].T + head["bias"]
    np.testing.assert_allclose(theirs.numpy(), found.logits(), atol=1e-5)
    back = ffa.load_adapter(base, folder)
    np.testing.assert_allclose(logits("bert", back), found.logits(), atol=1e-6)
