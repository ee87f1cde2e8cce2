"""Policies are strict, and their hash is over their meaning."""

from __future__ import annotations

from pathlib import Path

import pytest
from gate_records import good_comparison

from fer_lab.core.errors import FerLabError, InputError, NotFound
from fer_lab.gates import policy

POLICIES = sorted((Path(__file__).parents[3] / "experiments" / "policies").glob("*.yaml"))
FIRST = {"min_accuracy": {"at_least": 0.8}}


@pytest.mark.parametrize("path", POLICIES, ids=lambda p: p.name)
def test_a_committed_policy_is_valid(path: Path) -> None:
    """Every policy in the repository loads."""
    loaded = policy.load(path)
    assert loaded.gates
    assert loaded.first_promotion


def test_the_default_policy_promotes_a_good_challenger() -> None:
    """With a champion and without."""
    loaded = policy.load(next(path for path in POLICIES if path.name == "default.yaml"))
    comparison = good_comparison()
    for first in (False, True):
        assert policy.failed(policy.run(loaded, comparison, comparison.rows[1], first=first)) == []


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"gates": {"not_wors": {}}, "first_promotion": FIRST}, "unknown gate 'not_wors'; did you mean 'not_worse'"),
        ({"gates": {"size": {"max_bm": 1}}, "first_promotion": FIRST}, "unknown key 'max_bm'; did you mean 'max_mb'"),
        ({"gates": {"size": None}, "first_promotion": FIRST}, "expected a mapping of parameters"),
        ({"gates": {"min_accuracy": {}}, "first_promotion": FIRST}, "at_least: Field required"),
        ({"gates": {}, "first_promotion": FIRST}, "a policy without gates would promote anything"),
        ({"gates": {"size": {}}}, "first_promotion: Field required"),
        ({"gates": {"size": {}}, "first_promotion": FIRST, "runtim": "onnx"}, "unknown key 'runtim'; did you mean 'runtime'"),
        ({"gates": {"size": {"max_mb": -1}}, "first_promotion": FIRST}, "max_mb"),
        ({"gates": {"not_worse": {"margin": 2}}, "first_promotion": FIRST}, "margin"),
        ({"schema": 2, "gates": {"size": {}}, "first_promotion": FIRST}, "schema"),
    ],
)
def test_a_faulty_policy_names_the_fault(tree: dict[str, object], text: str) -> None:
    """Section, gate and parameter stand in the message."""
    with pytest.raises(InputError, match=text):
        policy.parse(tree)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("gates: {size: {}, size: {}}\nfirst_promotion: {size: {}}", "duplicate key"),
        ("- size", "expected a mapping"),
        ("", "empty"),
        ("gates: &a {size: {}}\nfirst_promotion: *a", "aliases are not allowed"),
        ("gates: !!python/object/apply:os.getcwd []", "tags are not allowed"),
    ],
)
def test_a_policy_file_is_strict_yaml(tmp_path: Path, text: str, wanted: str) -> None:
    """Duplicates, aliases and tags are refused."""
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(FerLabError, match=wanted):
        policy.load(path)


def test_a_missing_policy_is_not_found(tmp_path: Path) -> None:
    """Exit code 2, not an internal error."""
    with pytest.raises(NotFound, match="no such file"):
        policy.load(tmp_path / "absent.yaml")


def test_the_hash_is_over_the_meaning() -> None:
    """Defaults written out and another order keep it; another limit changes it."""
    short = policy.parse({"gates": {"size": {}, "licence": {}}, "first_promotion": FIRST})
    long = policy.parse({"schema": 1, "gates": {"licence": {}, "size": {"max_mb": 100}}, "first_promotion": FIRST})
    other = policy.parse({"gates": {"size": {"max_mb": 99}, "licence": {}}, "first_promotion": FIRST})
    assert short.hash == long.hash
    assert short.hash != other.hash


def test_a_sentence_says_observed_and_required() -> None:
    """What a person reads about a failed gate."""
    comparison = good_comparison(split="valid")
    parsed = policy.parse({"gates": {"evidence": {}}, "first_promotion": FIRST})
    text = policy.sentence(policy.run(parsed, comparison, comparison.rows[1])[0])
    assert text.startswith("evidence failed: 1000 valid faces")
    assert "; required: at least 100 faces of the test split" in text
