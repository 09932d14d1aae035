"""PEFT + Opacus on a GPU: the peers' own program with its model, batches and noise moved there.

Run by `accelerator.py`, with an interpreter that has torch, transformers, peft and opacus; the clients go one
after another on one model, as there. Products may round their inputs to TF32 (what `jax` does by default on
such a card), but not where the update is compared (`--update FILE`).
"""

import argparse
import json
import sys
import time
from statistics import median

import numpy as np


def main() -> None:
    """Times rounds, or writes the update of one without noise."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--peers", required=True)
    options.add_argument(
        "--update", help="write the flat update, noise off, here instead of timing"
    )
    options.add_argument("--clip", type=float)
    options.add_argument("--workload", required=True)
    for name in ("clients", "steps", "rounds"):
        options.add_argument(f"--{name}", type=int, required=True)
    given = options.parse_args()
    sys.path.insert(0, given.peers)
    import dataclasses

    import torch
    from common import WORKLOADS

    torch.set_float32_matmul_precision("highest" if given.update else "high")
    workload = dataclasses.replace(
        WORKLOADS[given.workload], clients=given.clients, local_steps=given.steps
    )
    if given.clip:
        workload = dataclasses.replace(workload, clip_norm=given.clip)
    trainer, batches, start = _trainer(workload, with_noise=not given.update)
    one_round(trainer, start, batches[:1])  # warm-up
    seconds = []
    for _ in range(given.rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        state = one_round(trainer, start, batches)
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - begin) / (given.clients * given.steps))
    if given.update:
        np.save(given.update, state)
    found = {"seconds_per_client_step": {"median": median(seconds), "min": min(seconds)}}
    print(json.dumps(found | {"device": torch.cuda.get_device_name(), "torch": torch.__version__}))


def _trainer(workload, with_noise: bool):
    import torch
    from inputs import all_batches, initial_state
    from peft_opacus import LocalTrainer

    trainer = LocalTrainer(workload, "random", 0, with_noise=with_noise)
    trainer.model.to("cuda")
    trainer.optimizer.generator = torch.Generator("cuda").manual_seed(0)
    batches = [
        [_moved(workload, batch) for batch in client]
        for client in all_batches(workload, "random", 0)
    ]
    return trainer, batches, initial_state(workload, 0)


def _moved(workload, batch):
    """(inputs, mask, labels) on the card: not timed."""
    import torch

    mask = None
    if workload.model == "minilm":
        rows, tokens = batch.inputs.shape
        lengths = np.full(rows, tokens) if batch.lengths is None else batch.lengths
        mask = torch.from_numpy((np.arange(tokens) < lengths[:, None]).astype(np.int64)).cuda()
    return torch.from_numpy(batch.inputs).cuda(), mask, torch.from_numpy(batch.labels).cuda()


def one_round(trainer, start: np.ndarray, batches) -> np.ndarray:
    """Every client's steps from the server's state, and the mean of their states."""
    import torch
    import torch.nn.functional as F
    from peft_opacus import set_state

    ends = []
    for client in batches:
        set_state(trainer.workload, trainer.trained, start)
        for inputs, mask, labels in client:
            trainer.optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(trainer.model(inputs, mask), labels).backward()
            trainer.optimizer.step()
        ends.append(torch.cat([leaf.detach().flatten() for leaf in trainer.trained]))
    return torch.stack(ends).mean(0).cpu().numpy()


if __name__ == "__main__":
    main()
