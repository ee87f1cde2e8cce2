"""A checkpoint on disk is whole or passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fer_lab.core.config import TrainConfig
from fer_lab.core.errors import InputError, IntegrityError
from fer_lab.training import checkpoint, recipe


def save(folder: Path, epoch: int) -> None:
    """A small checkpoint."""
    state = {"history": [{"epoch": float(epoch)}]}
    checkpoint.save(folder, checkpoint.Checkpoint(epoch, state, {"w": torch.full((3,), float(epoch))}))


def test_the_two_newest_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    """Nothing staged is left behind."""
    assert checkpoint.load(tmp_path) is None
    assert not checkpoint.exists(tmp_path)
    for epoch in (1, 2, 3):
        save(tmp_path, epoch)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-000002.json", "checkpoint-000002.safetensors", "checkpoint-000003.json", "checkpoint-000003.safetensors",
    ]  # fmt: skip
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert (loaded.epoch, loaded.tensors["w"].tolist()) == (3, [3.0] * 3)


@pytest.mark.parametrize("what", ["tensors", "json", "state", "missing"])
def test_a_damaged_newest_gives_the_one_before(tmp_path: Path, what: str) -> None:
    """Torn tensors, a torn record, an edited record, a missing file."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    tensors, record = tmp_path / "checkpoint-000002.safetensors", tmp_path / "checkpoint-000002.json"
    if what == "tensors":
        tensors.write_bytes(tensors.read_bytes()[:-2])
    elif what == "json":
        record.write_bytes(record.read_bytes()[:40])
    elif what == "state":
        tree = json.loads(record.read_text())
        tree["state"]["history"][0]["epoch"] = 9.0
        record.write_text(json.dumps(tree))
    else:
        tensors.unlink()
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded.epoch == 1


def test_none_whole_is_an_integrity_error_and_a_newer_schema_bad_input(tmp_path: Path) -> None:
    """Never a silent fresh start."""
    save(tmp_path, 1)
    record = tmp_path / "checkpoint-000001.json"
    record.write_text(record.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(InputError, match="newer"):
        checkpoint.load(tmp_path)
    record.write_text("{")
    with pytest.raises(IntegrityError, match="no whole checkpoint"):
        checkpoint.load(tmp_path)


def test_an_optimisers_state_survives_in_tensors_and_json() -> None:
    """AdamW's step, moments and tuple of betas."""
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.ones(4, 3)).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    tensors, record = checkpoint.pack_optimizer(optimizer)
    other = torch.optim.AdamW(network.parameters(), lr=0.5)
    checkpoint.unpack_optimizer(other, tensors, json.loads(json.dumps(record)))
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for index, values in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, other.state_dict()["state"][index][key]) for key, value in values.items())


@pytest.mark.filterwarnings("ignore::UserWarning")  # some optimisers say that they are experimental
def test_every_optimiser_survives_a_checkpoint_or_is_refused_before_it_trains() -> None:
    """Whatever timm offers: state that shows after a step only would end a run at its first checkpoint."""
    from timm.optim import list_optimizers

    refused = set()
    for name in sorted(set(list_optimizers()) - {"adahessian"}):  # needs second derivatives: it ends at its first step
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
        try:
            optimizer = recipe.make_optimizer(TrainConfig(optimizer=name), network)
        except InputError:
            refused.add(name)
            continue
        network(torch.ones(4, 1, 4, 4)).square().sum().backward()
        optimizer.step()
        tensors, record = checkpoint.pack_optimizer(optimizer)
        other = recipe.make_optimizer(TrainConfig(optimizer=name), network)
        checkpoint.unpack_optimizer(other, tensors, json.loads(json.dumps(record)))
        again, same_record = checkpoint.pack_optimizer(other)
        assert same_record == record, name
        assert again.keys() == tensors.keys(), name
        assert [key for key, tensor in tensors.items() if not torch.equal(again[key], tensor)] == [], name
    assert {"kron", "adafactorbv"} <= refused
    assert not {"adamw", "sgd", "lamb", "lambw", "muon"} & refused
