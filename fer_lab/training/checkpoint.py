"""Everything a run needs to continue as if it had never stopped: tensors in safetensors, the rest in JSON.

    checkpoint-000012.safetensors    network, EMA, optimiser, random generators
    checkpoint-000012.json           epoch, history, …, and the sha256 of the tensors; written last

Both appear by rename after an fsync; the two newest stay. A pair that does not match its digest is passed over for
the one before. There is no pickle.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fer_lab.core.errors import InputError, IntegrityError, refuse_newer
from fer_lab.core.files import is_staged, write_whole

SCHEMA = 1
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state at the end of an epoch."""

    epoch: int  # epochs done
    state: dict[str, Any]  # JSON
    tensors: dict[str, Tensor]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Publish a checkpoint in `folder`, then delete all but the two newest. Raises OSError when the disk is full.

    What a killed process left half-written or half-deleted in `folder`, which has one writer at a time, goes too.
    """
    from safetensors.torch import save as to_bytes

    name = f"checkpoint-{checkpoint.epoch:06d}"
    data = to_bytes({key: tensor.detach().to("cpu").contiguous() for key, tensor in checkpoint.tensors.items()})
    write_whole(folder / f"{name}.safetensors", data)
    record = {
        "schema": SCHEMA,
        "epoch": checkpoint.epoch,
        "sha256": hashlib.sha256(data).hexdigest(),
        "state_sha256": _digest(checkpoint.state),
        "state": checkpoint.state,
    }
    write_whole(folder / f"{name}.json", _as_bytes(record))
    kept = {f"checkpoint-{epoch:06d}" for epoch in _epochs(folder)[:KEPT]}
    for path in folder.iterdir():
        if is_staged(path) or (path.name.startswith("checkpoint-") and path.stem not in kept):
            path.unlink(missing_ok=True)


def exists(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint, whole or not."""
    return bool(_epochs(folder))


def load(folder: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint, None when there is none at all.

    Raises IntegrityError when there are some and none is whole, InputError when it is of a newer fer_lab.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    faults = []
    for epoch in _epochs(folder):
        name = f"checkpoint-{epoch:06d}"
        try:
            text = (folder / f"{name}.json").read_bytes()
            record = json.loads(text)
            refuse_newer(folder / f"{name}.json", int(record["schema"]), SCHEMA)
            data = (folder / f"{name}.safetensors").read_bytes()
            same = hashlib.sha256(data).hexdigest() == record["sha256"] and _digest(record["state"]) == record["state_sha256"]
            # No digest covers the rest of the record; it is written in one way only, and the file's name holds the epoch.
            if same and record["epoch"] == epoch and record["schema"] == SCHEMA and _as_bytes(record) == text:
                return Checkpoint(epoch, record["state"], from_bytes(data))
            faults.append(f"{name}: {'its record was changed' if same else 'sha256 differs'}")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            faults.append(f"{name}: {type(error).__name__}")
    if faults:
        raise IntegrityError(f"{folder}: no whole checkpoint ({'; '.join(faults)}). Start the run again without --resume")
    return None


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors and JSON.

    Tensors are named `optimizer.<index>.<key>`, those of a parameter group `optimizer.group.<index>.<key>`. Raises
    InputError for an optimiser that keeps something else.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = [{} for _ in state["param_groups"]]
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    for index, values in enumerate(state["param_groups"]):
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.group.{index}.{key}"] = value
            else:
                groups[index][key] = value
    more = sorted(set(state) - {"state", "param_groups"})
    try:
        json.dumps([groups, numbers])
    except TypeError as error:
        more.append(str(error))
    if more:
        raise InputError(f"{type(optimizer).__name__}'s state does not fit a checkpoint ({'; '.join(more)}); use another optimiser")
    return tensors, {"groups": groups, "numbers": numbers}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Load what `pack_optimizer` gave into an optimiser of the same parameters."""
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in record["numbers"].items()}
    groups = [
        {key: tuple(value) if isinstance(now.get(key), tuple) else value for key, value in saved.items()}
        for saved, now in zip(record["groups"], optimizer.state_dict()["param_groups"], strict=True)
    ]
    for name, tensor in tensors.items():
        if name.startswith("optimizer.group."):
            _, _, index, key = name.split(".", 3)
            groups[int(index)][key] = tensor
        elif name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _epochs(folder: Path) -> list[int]:
    """Epochs that have a JSON, newest first."""
    return sorted((int(p.stem.split("-")[1]) for p in folder.glob("checkpoint-[0-9]*.json") if p.stem[11:].isdigit()), reverse=True)


def _as_bytes(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, sort_keys=True) + "\n").encode()


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
