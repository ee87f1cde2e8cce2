"""Names, close names and local weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fer_lab.core.errors import InputError, NotFound
from fer_lab.models import backbones
from fer_lab.models.weights import save_weights
from fer_lab.training.recipe import start_classifier

B0 = "tf_efficientnetv2_b0"


def test_an_unknown_backbone_names_the_nearest() -> None:
    """There is no efficientnetv2_b0 without tf_."""
    with pytest.raises(InputError, match="did you mean 'tf_efficientnetv2_b0'"):
        backbones.check("efficientnetv2_b0", 96)


def test_b0_has_as_many_parameters_as_the_seeds_keras_twin() -> None:
    """5,868,376 at 8 classes and one channel."""
    network = backbones.build(B0, classes=8)
    assert sum(p.numel() for p in network.parameters()) == 5_868_376


def test_statistics_are_timms_record_averaged_over_channels() -> None:
    """b0 has ImageNet's, b3 has 0.5."""
    assert backbones.statistics(B0) == pytest.approx(((0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3))
    assert backbones.statistics("tf_efficientnetv2_b3") == (0.5, 0.5)


def test_a_local_weights_file_replaces_the_hub(tmp_path: Path) -> None:
    """The trunk comes from the file; another number of classes gets a new classifier."""
    first = backbones.build(B0, classes=8)
    save_weights(first, tmp_path / "w.safetensors")
    second = backbones.build(B0, classes=5, weights_file=tmp_path / "w.safetensors")
    torch.testing.assert_close(second.conv_stem.weight, first.conv_stem.weight)  # type: ignore[union-attr]
    assert second(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


def test_a_classifier_of_as_many_classes_comes_with_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run that goes on from its own kind of network begins with that network's answers."""
    first = backbones.build(B0, classes=8).eval()
    save_weights(first, tmp_path / "w.safetensors")
    second = backbones.build(B0, classes=8, weights_file=tmp_path / "w.safetensors")
    start_classifier(second, 0.01, tmp_path / "w.safetensors")
    faces = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(second.eval()(faces), first(faces))
    other = backbones.build(B0, classes=5, weights_file=tmp_path / "w.safetensors")
    start_classifier(other, 0.01, tmp_path / "w.safetensors")
    assert 0.009 < float(other.classifier.weight.detach().std()) < 0.011  # type: ignore[union-attr,arg-type,operator]
    assert caplog.records == []  # timm has nothing to say about a file of our own


def test_weights_that_are_missing_or_do_not_fit_are_refused_in_one_sentence(tmp_path: Path) -> None:
    """Exit code 2, with the file's name."""
    with pytest.raises(NotFound, match="no such file"):
        backbones.build(B0, classes=8, weights_file=tmp_path / "none.pth")
    (tmp_path / "junk.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match="does not fit"):
        backbones.build(B0, classes=8, weights_file=tmp_path / "junk.pth")


def test_pretrained_without_the_hub_says_what_to_do() -> None:
    """Offline, the message names model.weights_file."""
    with pytest.raises(InputError, match="weights_file=PATH"):
        backbones.build(B0, classes=8, pretrained=True)
