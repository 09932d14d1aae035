"""The model card (README.md) of an exported adapter or model: what it promises, how to load it."""

import json
import re
from string import Template
from typing import Any, NamedTuple

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+\-!|~$&])")
FENCE = "~~~~~~~~"
"""No name can close it: in the snippets line ends and tildes of names are escaped."""


class Facts(NamedTuple):
    """What a card says."""

    base: str
    """Directory or name of the base model."""
    is_hub_name: bool
    is_ours: bool
    """Whether only this package can make the base model."""
    has_head: bool
    merged: bool
    loader: str
    """The class of transformers that loads the model."""
    task: str | None
    bare: bool
    """Whether the head lies apart, in ``head.safetensors``."""
    pairs: bool
    """Whether the texts come in pairs."""
    class_names: tuple[str, ...]
    settings: Any
    """The experiment."""
    method_sentence: str
    privacy: dict[str, Any]
    metrics: dict[str, Any]
    """The last line of metrics.jsonl, or nothing."""
    num_clients: int
    client: str | None
    """Whose personal leaves are in it."""
    member: int | None
    """Which one of an ensemble it is, from 0."""


def card(facts: Facts) -> str:
    """Returns the card as Markdown."""
    what = "model" if facts.merged else "adapter"
    return "\n".join(
        [
            *_front(facts),
            f"# {text(facts.settings.name)}: a federated LoRA {what}",
            "",
            *_table(facts),
            "",
            "## Privacy",
            "",
            *_privacy(facts),
            "",
            "## Loading",
            "",
            f"{FENCE}python",
            snippet(facts).rstrip(),
            FENCE,
            "",
            *_notes(facts),
        ]
    )


def text(value: Any) -> str:
    """Returns a value as one line of Markdown that says just that."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))


def snippet(facts: Facts) -> str:
    """Returns Python that loads what lies beside the card and uses it; run it in that folder."""
    base = "." if facts.merged else facts.base
    model = facts.settings.model
    options = f', dtype="{model.dtype}"'
    if facts.class_names and not facts.bare and not facts.merged:
        options = f", num_labels={len(facts.class_names)}, ignore_mismatched_sizes=True{options}"
    load = f"{facts.loader}.from_pretrained(base{options})"
    load = load if facts.merged else f"PeftModel.from_pretrained({load}, here)"
    texts = '["a text"], ["its pair"]' if facts.pairs else '["a text"]'
    code = Template(_CODE[_kind(facts)].replace("PEFT\n", "" if facts.merged else _PEFT))
    return code.substitute(
        LOADER=facts.loader,
        MODEL=f"{load}.eval()",
        BASE=_literal(base),
        NAMES="[" + ", ".join(map(_literal, facts.class_names)) + "]",
        TOKENS=model.max_tokens,
        NEW=model.max_new_tokens,
        SEED=facts.settings.seed,
        TEXTS=texts,
        ASK='generate(["a prompt"])' if facts.task == "CAUSAL_LM" else f"predict({texts})",
    )


def _kind(facts: Facts) -> str:
    if facts.is_ours:
        return "ours"
    if facts.bare:
        return "bare"
    return {"SEQ_CLS": "text", "CAUSAL_LM": "instructions"}.get(facts.task or "", "images")


def _literal(value: str) -> str:
    """A Python string of one line that cannot close a fence."""
    return json.dumps(value, ensure_ascii=False).replace("~", "\\u007e").replace("`", "\\u0060")


_PEFT = "from peft import PeftModel\n"
_CODE = {
    "text": """import torch
PEFT
from transformers import AutoTokenizer, $LOADER

base, here = $BASE, "."
model = $MODEL
tokenizer = AutoTokenizer.from_pretrained(base)
batch = tokenizer($TEXTS, truncation=True, max_length=$TOKENS, return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits
print($NAMES[int(logits[0].argmax())])
""",
    "images": """import torch
PEFT
from PIL import Image
from transformers import AutoImageProcessor, $LOADER

base, here = $BASE, "."
model = $MODEL
processor = AutoImageProcessor.from_pretrained(base)
batch = processor(Image.open("image.png").convert("RGB"), return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits
print($NAMES[int(logits[0].argmax())])
""",
    "instructions": """import torch
PEFT
from transformers import AutoTokenizer, $LOADER

base, here = $BASE, "."
model = $MODEL
tokenizer = AutoTokenizer.from_pretrained(base)
batch = tokenizer(["a prompt"], return_tensors="pt")
with torch.no_grad():
    answer = model.generate(**batch, max_new_tokens=$NEW, do_sample=False)
print(tokenizer.decode(answer[0], skip_special_tokens=True))
""",
    "ours": """import ffalora_jax as ffa

model = ffa.load_adapter($BASE, ".", seed=$SEED, max_tokens=$TOKENS, max_new_tokens=$NEW)
print(model.$ASK)
""",
    "bare": """import torch
PEFT
from safetensors.torch import load_file
from transformers import AutoTokenizer, $LOADER

base, here = $BASE, "."
model, head = $MODEL, load_file(f"{here}/head.safetensors")
tokenizer = AutoTokenizer.from_pretrained(base)
batch = tokenizer($TEXTS, truncation=True, max_length=$TOKENS, return_tensors="pt")
with torch.no_grad():
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
    logits = mean @ head["weight"].T + head["bias"]
print($NAMES[int(logits[0].argmax())])
""",
}


def _front(facts: Facts) -> list[str]:
    lines = ["---", f"library_name: {'transformers' if facts.merged else 'peft'}"]
    if facts.is_hub_name:
        lines.append(f"base_model: {json.dumps(facts.base)}")
    return [
        *lines,
        "tags: [lora, federated-learning, differential-privacy, ffalora-jax]",
        "---",
        "",
    ]


def _table(facts: Facts) -> list[str]:
    method, test = facts.settings.method, facts.metrics.get("test_accuracy")
    if facts.member is not None and "members" in facts.metrics:
        test = facts.metrics["members"]["test_accuracy"][facts.member]
    rows = {
        "base model": text(facts.base),
        "method": f"{text(method.name)} ({text(facts.method_sentence)})",
        "LoRA": f"rank {method.rank}, alpha {method.lora_alpha:g}, targets {text(method.targets)}",
        "clients": str(facts.num_clients),
        "rounds": f"{facts.privacy['rounds']} of {facts.settings.local_steps} local steps",
        "test accuracy, all clients": "not measured" if test is None else f"{test:.4f}",
    }
    if facts.class_names:
        rows["classes"] = ", ".join(map(text, facts.class_names))
    if facts.member is not None:
        rows["member"] = f"{facts.member} (from 0) of {facts.settings.ensemble.members}"
    if facts.client is not None:
        rows["personal part of"] = text(facts.client)
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def _privacy(facts: Facts) -> list[str]:
    found = facts.privacy
    lines = [text(found["statement"])]
    if found["unit"]:
        lines.insert(
            0, f"epsilon {found['epsilon']:.4g}, delta {found['delta']:g}, per {found['unit']}"
        )
        lines[0] += f"; the largest over the clients. Adversary: {text(found['trust_model'])}."
        lines[1:1] = _with_start(found.get("started_from"))
    else:
        lines.insert(0, "**No privacy is claimed.**")
    lines += ["", "Not protected:", ""]
    lines += [f"- {text(what)}" for what in found["not_protected"]]
    return [
        *lines,
        "",
        f"Release: {text(found['release_note'])}.",
        f"Sampler: {text(found['sampler'])}.",
    ]


def _with_start(before: dict[str, Any] | None) -> list[str]:
    """What the adapter that it began from adds to the bill."""
    if before is None:
        return []
    if before["epsilon_in_all"] is not None:
        spent = before["epsilon_in_all"], before["delta_in_all"]
        return [
            f"With what it started from, on the same data: epsilon {spent[0]:.4g}, delta {spent[1]:g}."
        ]
    if before["no_sum"]:
        return [
            f"**There is no epsilon for it with what it started from**: {text(before['no_sum'])}."
        ]
    return []


def _notes(facts: Facts) -> list[str]:
    if facts.bare:
        return [
            "The model ends in the mean of the real tokens and a linear head, for which transformers has no "
            "class: the head lies in head.safetensors (weight, bias).",
            "",
        ]
    if not facts.has_head and facts.task != "CAUSAL_LM":
        return ["The head stays at each client: export with a client's name to get it.", ""]
    return []
