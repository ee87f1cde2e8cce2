"""Votes become targets by one rule; the rule is checked against its own words and against golden rows."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from fer_lab.core.errors import InputError
from fer_lab.core.labels import DROPPED, PROTOCOLS, VOTE_COLUMNS, protocol

GOLDEN = Path(__file__).parents[2] / "golden" / "votes" / "votes.csv"


def label_by_words(votes: list[int], labels: tuple[str, ...]) -> int:
    """The rule, word by word, for one face."""
    left = [0 if count == 1 else count for count in votes]
    largest = max(left)
    if not largest * 2 > sum(left):
        return DROPPED
    winner = VOTE_COLUMNS[left.index(largest)]
    return labels.index(winner) if winner in labels else DROPPED


@pytest.mark.parametrize("name", PROTOCOLS)
def test_labels_follow_the_rule_word_by_word(name: str) -> None:
    """The vectorised rule agrees with the plain one on thousands of random votes."""
    rng = np.random.default_rng(1)
    chances = rng.dirichlet(np.full(10, 0.3), 3000)
    votes = rng.multinomial(10, chances).astype(np.uint8)
    expected = [label_by_words(row, PROTOCOLS[name].label_set.labels) for row in votes.tolist()]
    assert expected == PROTOCOLS[name].labels(votes).tolist()


def test_golden_rows_keep_their_targets() -> None:
    """Rows of label files and what both protocols make of them, for ever."""
    with GOLDEN.open(newline="") as file:
        rows = list(csv.DictReader(file))
    votes = np.array([[int(row[column]) for column in VOTE_COLUMNS] for row in rows], np.uint8)
    for name, rule in PROTOCOLS.items():
        labels = [rule.label_set.labels[i] if i != DROPPED else "dropped" for i in rule.labels(votes).tolist()]
        assert [row[name] for row in rows] == labels
        distribution, usable = rule.distribution(votes)
        expected = [[float(part) for part in row[f"{name}_soft"].split()] for row in rows]
        np.testing.assert_allclose(distribution, expected, atol=5e-5)
        assert [row[f"{name}_usable"] == "yes" for row in rows] == usable.tolist()


def test_ties_and_exact_halves_are_dropped() -> None:
    """More than half is needed, after single votes are gone."""
    votes = np.zeros((3, 10), np.uint8)
    votes[0, [0, 1]] = 5, 5
    votes[1, [0, 1, 2]] = 5, 3, 2
    votes[2, [0, 1, 2, 3, 4, 5]] = 5, 1, 1, 1, 1, 1
    assert PROTOCOLS["ferplus8"].labels(votes).tolist() == [DROPPED, DROPPED, 0]


def test_no_votes_and_no_faces_are_fine() -> None:
    """A face without votes is dropped and unusable; an empty array stays one."""
    nothing = np.zeros((1, 10), np.uint8)
    assert PROTOCOLS["ferplus8"].labels(nothing).tolist() == [DROPPED]
    distribution, usable = PROTOCOLS["ferplus8"].distribution(nothing)
    assert (distribution.sum(), usable.tolist()) == (0, [False])
    assert PROTOCOLS["ferplus8"].labels(np.zeros((0, 10), np.uint8)).shape == (0,)


def test_soft_targets_are_the_raw_votes_of_the_label_set() -> None:
    """Single votes count in the distribution, but alone they do not make a face usable."""
    votes = np.array([[6, 1, 0, 0, 0, 0, 0, 1, 2, 0], [1, 1, 1, 1, 1, 1, 1, 1, 2, 0]], np.uint8)
    distribution, usable = PROTOCOLS["ferplus8"].distribution(votes)
    np.testing.assert_allclose(distribution[0], [6 / 8, 1 / 8, 0, 0, 0, 0, 0, 1 / 8])
    assert usable.tolist() == [True, False]


def test_an_unknown_protocol_names_the_nearest() -> None:
    """A typing error gets a suggestion."""
    with pytest.raises(InputError, match=r"unknown protocol 'ferplus9'; known: ferplus8, ferplus5; did you mean 'ferplus8'\?"):
        protocol("ferplus9")


def write_golden() -> None:
    """Write the golden rows anew, by the plain rule: only when the protocol's version changes on purpose."""
    rng = np.random.default_rng(8)
    votes = [*rng.multinomial(10, rng.dirichlet(np.full(10, 0.35), 24)).tolist()]
    votes += [
        [10] + [0] * 9,
        [0] * 9 + [10],
        [5, 5] + [0] * 8,
        [1] * 8 + [2, 0],
        [0, 0, 0, 0, 0, 0, 9, 0, 0, 0],
        [4, 0, 0, 1, 3, 2, 0, 0, 0, 0],
    ]
    columns = [*VOTE_COLUMNS, *(f"{name}{part}" for name in PROTOCOLS for part in ("", "_soft", "_usable"))]
    with GOLDEN.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in votes:
            cells: list[object] = list(row)
            for rule in PROTOCOLS.values():
                label = label_by_words(row, rule.label_set.labels)
                raw = [row[i] for i in rule.label_set.columns]
                soft = [count / max(1, sum(raw)) for count in raw]
                usable = "yes" if any(count > 1 for count in raw) else "no"
                cells += [
                    rule.label_set.labels[label] if label != DROPPED else "dropped",
                    " ".join(f"{s:.4f}" for s in soft),
                    usable,
                ]
            writer.writerow(cells)


if __name__ == "__main__":
    write_golden()
