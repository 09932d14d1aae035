"""The command ``ffalora export``: a run's adapter for PEFT, or merged into a plain Hugging Face model.

Written beside its place and moved there whole, with a model card. No training data is copied.
"""

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax

from ffalora_jax import merge as merging
from ffalora_jax import peft_io
from ffalora_jax.adapter_file import FACTS, write_head, write_peft
from ffalora_jax.cli_privacy import parser_of
from ffalora_jax.config import MethodConfig
from ffalora_jax.detours import whole_a, widened
from ffalora_jax.errors import InputError
from ffalora_jax.evaluate import client_adapters
from ffalora_jax.freezing import method_of
from ffalora_jax.loaded_run import Ready, Run, load_run
from ffalora_jax.lora import LoraModel
from ffalora_jax.model_card import Facts, card
from ffalora_jax.peft_names import names_of
from ffalora_jax.types import Adapters
from ffalora_jax.warm_start import facts_for_later


def run(arguments: list[str]) -> int:
    """Runs the command and prints the folder that was made."""
    parser = parser_of(
        "export", "Write a run's adapter as PEFT reads it, or merged into its base model."
    )
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("out", metavar="DIR", help="folder to make")
    parser.add_argument(
        "--merge", action="store_true", help="a plain Hugging Face model in place of an adapter"
    )
    parser.add_argument("--client", metavar="NAME", help="with this client's personal leaves")
    parser.add_argument(
        "--member", metavar="N", type=int, help="of an ensemble: this member, from 0"
    )
    asked = parser.parse_args(arguments)
    chosen = {"merge": asked.merge, "client": asked.client, "member": asked.member}
    print(export_run(load_run(asked.run), asked.out, **chosen))
    return 0


def export_run(
    run: Run,
    out: str | Path,
    *,
    merge: bool = False,
    client: str | None = None,
    member: int | None = None,
) -> Path:
    """Writes the folder and returns its path.

    ``PeftModel.from_pretrained(base, out)`` then gives the run's logits, head included; a model with mean
    pooling has its head in ``head.safetensors`` and a loading snippet in the card.

    Args:
        run: a finished or stopped run.
        out: folder to make.
        merge: W + scaling A B in place of an adapter, as a plain Hugging Face model.
        client: whose personal leaves to take, of a method or head that has some.
        member: which one of an ensemble, from 0.

    Raises:
        InputError: the folder exists or cannot be written; an unknown client; leaves that stay at clients
            and none is named; a model that Hugging Face's libraries do not have. Nothing is written then.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"Folder {str(out)!r} exists: give the path of a new one.")
    adapters = _leaves_of(run.ready, client, merge)
    adapters = _member_of(adapters, run.ready.lora.members, member)
    settings, model, adapters = _plain_lora(run.experiment.method, run.ready.lora, adapters)
    files = peft_io.to_peft(settings, run.ready.loaded, model, adapters)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".ffalora-export-") as beside:
            new = Path(beside, out.name)
            new.mkdir()
            if merge:
                merging.write_merged(new, run.ready.loaded, model, adapters, run.class_names)
                write_head(new, files)
            else:
                write_peft(new, files)
            facts = _facts(run, settings, out, files, merge, client, member)
            (new / "README.md").write_text(card(facts), encoding="utf-8")
            said = facts_for_later(run.experiment, facts.privacy)
            said = json.dumps({"class_names": facts.class_names, **said})
            (new / FACTS).write_text(said + "\n")
            os.rename(new, out)
    except OSError as error:
        raise InputError(
            f"Cannot write {str(out)!r}: {error.strerror or error}. Give a folder that can be made."
        ) from None
    return out


def _plain_lora(
    settings: MethodConfig, model: LoraModel, adapters: Adapters
) -> tuple[MethodConfig, LoraModel, Adapters]:
    """Turns LoRA that began from a part of W into plain LoRA of twice the rank, on the published base."""
    adapters = {name: whole_a(found) for name, found in adapters.items()}
    if not any("start_a" in found for found in adapters.values()):
        return settings, model, adapters
    root = 2**0.5 if settings.use_rslora else 2.0
    wide = {
        name: one._replace(rank=2 * one.rank, lora_alpha=root * one.lora_alpha)
        for name, one in model.adapted.items()
    }
    rank, alpha = 2 * settings.rank, root * settings.lora_alpha
    settings = dataclasses.replace(settings, rank=rank, lora_alpha=alpha)
    layers = {name: widened(found) for name, found in adapters.items()}
    return settings, model._replace(adapted=wide), layers


def _leaves_of(ready: Ready, client: str | None, merge: bool) -> Adapters:
    """Returns the server's leaves with those of a client, if one is named."""
    adapters = ready.state.adapters
    needs_own = merge or peft_io.why_not(ready.loaded, ready.lora, adapters)
    if client is None and not (ready.client_names and needs_own):
        return adapters
    return client_adapters(ready.state, ready.index_of(client))


def _member_of(adapters: Adapters, members: int, member: int | None) -> Adapters:
    """Returns the leaves of one member of an ensemble."""
    if members == 1 and member in (None, 0):
        return adapters
    if member is None or not 0 <= member < members:
        got = "" if member is None else f", got {member}"
        raise InputError(
            f"This run has {members} members, and a checkpoint holds one: give --member 0 to {members - 1}"
            f"{got}. metrics.jsonl says which did best on the validation part (not private)."
        )
    return jax.tree.map(lambda leaf: leaf[member], adapters)


def _with_own_leaves(privacy: dict[str, Any], client: str | None) -> dict[str, Any]:
    """Returns what is claimed of an export: nothing, where it holds leaves that never got noise.

    Under client-level privacy what is sent is noised at the server; what stays at a client is as it is.
    """
    if client is None or privacy["unit"] != "client":
        return privacy
    return {
        **privacy,
        **dict.fromkeys(("unit", "epsilon", "delta", "started_from")),
        "statement": f"The leaves of {client!r} in here never left it and got no noise.",
        "release_note": "no privacy for this client's part: not to be handed on",
        "releasable": False,
    }


def _facts(
    run: Run,
    adapted: MethodConfig,
    out: Path,
    files: peft_io.PeftAdapter,
    merge: bool,
    client: str | None,
    member: int | None,
) -> Facts:
    loaded, names = run.ready.loaded, names_of(run.ready.loaded)
    is_folder = loaded.directory is not None and Path(loaded.source).is_dir()
    base = loaded.source
    if is_folder and not Path(base).is_absolute():
        base = os.path.relpath(base, out)  # the card's code runs in the folder of the card
    method = method_of(run.experiment)
    return Facts(
        base=base,
        is_hub_name=loaded.directory is not None and not is_folder,
        is_ours=loaded.directory is None,
        has_head=bool(files.head or files.config["modules_to_save"]),
        merged=merge,
        loader=names.loader,
        task=names.task,
        bare=names.bare,
        pairs=run.reads_pairs,
        class_names=run.class_names,
        settings=dataclasses.replace(run.experiment, method=adapted),
        method_sentence=method.sentence,
        privacy=_with_own_leaves(run.privacy, client),
        metrics=run.metrics[-1] if run.metrics else {},
        num_clients=run.privacy["num_clients"],
        client=client,
        member=member if run.ready.lora.members > 1 else None,
    )
