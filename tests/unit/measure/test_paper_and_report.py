"""What is written for a paper and for a manager: the figures, the recommendation, safe text."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest

from fer_lab.core.types import Host, Verdict
from fer_lab.measure import charts, paper, report
from fer_lab.measure.comparison import Audit
from tests.gate_records import CHALLENGER, HOST, good_comparison, good_row, profile


def test_the_csv_has_one_line_per_row_and_the_verdict():
    """Every plain figure is a column; best accuracy first."""
    comparison = good_comparison()
    lines = list(csv.DictReader(io.StringIO(paper.leaderboard_csv(comparison))))
    assert len(lines) == len(comparison.rows)
    assert {line["verdict"] for line in lines} == {"reference", "non-inferior"}
    assert [float(line["accuracy"]) for line in lines] == sorted((row.accuracy for row in comparison.rows), reverse=True)


def test_the_table_is_valid_tex():
    """Special characters of a path are escaped, every row ends, tables are closed."""
    comparison = good_comparison(good_row(model="some_model&co%"), verdicts=())
    text = paper.leaderboard_tex(comparison)
    assert "some\\_model\\&co\\%" in text
    assert text.count("\\\\\n") == 3  # the head and two rows
    assert text.count("\\begin") == text.count("\\end")


def test_the_markdown_table_reads_as_one():
    """Every line has as many cells as the head; a pipe or an underscore in a name stays text; the verdict is the last cell."""
    comparison = good_comparison(good_row(model="odd|_name"))
    text = paper.leaderboard_md(comparison)
    assert text.startswith(f"{comparison.dataset} ")
    head, rule, *rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines()[2:]]
    assert {len(head)} == {len(rule), *map(len, rows)}
    assert len(rows) == len(comparison.rows)
    assert any("odd\\|\\_name" in row[0] for row in rows)
    best = max(comparison.rows, key=lambda row: row.accuracy)
    assert rows[0][2].startswith(f" {best.accuracy * 100:.2f} ({best.accuracy_low * 100:.1f}–")
    assert "reference" in {row[-1].strip() for row in rows}


def test_methods_state_what_a_reviewer_asks():
    """Faces, label source, protocol, statistics, looks, seeds, hardware, references."""
    text = paper.methods(good_comparison())
    for word in (
        "1000 faces",
        "label source synthetic",
        "ferplus8",
        "McNemar",
        "Holm",
        "Looks",
        "Seeds",
        "A Processor",
        "References",
    ):
        assert word in text


def timed(digest: str, host: Host = HOST, *, batch: int = 1, threads: int = 1, floor: float = 0.01):
    """A profile under another specification."""
    one = profile(digest, host=host, threads=threads)
    latency = replace(one.latency, spec=replace(one.spec, batch=batch))
    return replace(one, noise_floor=floor, latency=latency)


def test_methods_tell_the_measurement_that_the_rows_show():
    """Another host's figures: its processor, threads, batch, samples and floor, and the model that was its control."""
    edge = Host("edge", "Linux", "An Edge Processor", 16, ("neon",))
    there = (timed("d2", edge, batch=8, threads=4, floor=0.031), timed("d1", edge, batch=8, threads=4, floor=0.031))
    rows = [replace(row, host="edge", threads=4, batch=8, samples=40) for row in good_comparison().rows]
    comparison = good_comparison(rows=tuple(rows), profiles=(profile("d1"), profile("d2"), *there))
    (said,) = [text for text in paper.methods(comparison).split("\n\n") if text.startswith("**Latency**")]
    for words in ("An Edge Processor", "4 threads, batch 8", "at least 40 samples per row", "noise floor of 3.1%"):
        assert words in said
    assert "fer-synthetic-8/2 · openvino against itself (A/A)" in said  # the first that was timed there, not the reference
    for words in ("A Processor", "cores", "1 000", "5 s", "The reference against itself"):
        assert words not in said
    untimed = replace(comparison, rows=tuple(replace(row, host=None, threads=None, batch=None) for row in rows))
    assert "**Latency**" not in paper.methods(untimed)


@pytest.mark.parametrize(("batch", "words"), [(1, " ms per face (median)"), (8, " ms per call of 8 faces (median)")])
def test_the_headline_says_what_a_latency_is_of(batch, words):
    """A call of eight faces is not a face."""
    comparison = good_comparison(good_row(batch=batch), verdicts=said("better"))
    assert words in report.recommend(comparison).headline


def test_models_of_one_name_stay_apart_in_every_table():
    """Two bundles in folders of one name, told apart by the folder above."""
    one, two = (good_row(f"runs/{name}/bundle", digest=name, runtime="onnx") for name in ("a", "b"))
    comparison = good_comparison(rows=(one, two), reference_model=one.model, reference_runtime="onnx", verdicts=())
    for text in (paper.leaderboard_md(comparison), paper.leaderboard_tex(comparison)):
        assert "a/bundle" in text
        assert "b/bundle" in text
    assert report.recommend(comparison).headline.startswith("Recommended: a/bundle in onnx")


def test_the_calibration_floor_is_that_of_all_rows():
    """One figure where the rows agree to three digits, a range where they do not, nothing in records without it."""
    first, second = good_comparison().rows
    for floors, expected in (((0.0131, 0.0129), "0.013"), ((0.0144, 0.012), "0.012 to 0.014"), ((None, None), "")):
        rows = tuple(replace(row, ece_floor=floor) for row, floor in zip((first, second), floors, strict=True))
        assert paper.calibration_floor(replace(good_comparison(), rows=rows)) == expected


def said(word: str, model: str = CHALLENGER) -> tuple[Verdict, ...]:
    """One verdict on accuracy."""
    return (Verdict(model, "openvino", "accuracy", word, "by hand", 1000, 0.0, -0.01, 0.01, 1.0),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("word", "p50", "floor", "expected"),
    [
        ("better", 9.0, 0.01, 2),  # better wins, also when slower
        ("worse", 0.1, 0.01, 1),
        ("undecided", 0.1, 0.01, 1),  # not shown to be as good
        ("non-inferior", 1.0, 0.01, 2),  # a tie goes to the quicker one
        ("non-inferior", 9.0, 0.01, 1),
    ],
)
def test_the_recommendation_follows_the_verdicts(word, p50, floor, expected):
    """Better first; among equals the quicker; never a row that is worse or undecided over the reference."""
    comparison = good_comparison(good_row(p50_ms=p50), verdicts=said(word), noise_floor=floor)
    assert report.recommend(comparison).row.version == expected


def test_a_model_that_fails_the_batch_audit_is_not_recommended():
    """However good its figures."""
    row = replace(good_row(accuracy=0.99), batch_invariant=False)
    assert report.recommend(good_comparison(row, verdicts=said("better"))).row.version == 1


def test_when_every_model_fails_the_batch_audit_the_headline_says_so():
    """One row is still named, as the nearest to it, and each fault stands below."""
    rows = tuple(replace(row, batch_invariant=False, audit=Audit(False, 512, 9)) for row in good_comparison().rows)
    advice = report.recommend(good_comparison(rows=rows))
    assert advice.headline.startswith("No row can be recommended")
    assert not advice.row.sound
    assert sum("9 of 512 faces get another label in another batch" in text for text in advice.undecided) == 2


@pytest.mark.parametrize(
    ("timed", "floor", "says"),
    [
        (2, 0.01, "front of accuracy, latency and size"),
        (2, 0.2, None),
        (1, 0.01, None),  # of the other nobody knows whether it is quicker
        (0, None, "front of accuracy and size"),
    ],
)
def test_the_front_is_of_what_was_measured(timed, floor, says):
    """Without latency it has two axes; with a noisy one, or one of a part of the rows, nothing is said."""
    given = enumerate(good_comparison().rows)
    rows = tuple(replace(row, p50_ms=row.p50_ms if i < timed else None, on_front=True) for i, row in given)
    reasons = " ".join(report.recommend(good_comparison(rows=rows, noise_floor=floor)).reasons)
    assert (says in reasons) if says else "front" not in reasons


def test_the_quickest_is_taken_only_where_all_of_them_were_timed():
    """A row that nobody timed may be quicker."""
    comparison = good_comparison(good_row(accuracy=0.855), verdicts=said("non-inferior"))
    assert any("quickest" in reason for reason in report.recommend(comparison).reasons)
    untimed = replace(comparison, rows=(replace(comparison.rows[0], p50_ms=None), comparison.rows[1]))
    assert not any("quickest" in reason for reason in report.recommend(untimed).reasons)


def test_on_validation_faces_the_words_are_those_of_validation():
    """A tie is not broken by the very figure that was level; twins are those in train alone."""
    card = {"fingerprint": "f" * 64, "validation": {"accuracy": 0.9}}
    rows = tuple(replace(row, card=card) for row in good_comparison(good_row(accuracy=0.855)).rows)
    comparison = good_comparison(rows=rows, verdicts=said("non-inferior"), noise_floor=0.2)
    assert any("highest accuracy on validation" in reason for reason in report.recommend(comparison).reasons)
    reasons = " ".join(report.recommend(replace(comparison, split="valid")).reasons)
    assert "on validation" not in reasons
    assert "faces without a twin in train:" in reasons
    assert "twin in train (*clean*)" in paper.methods(replace(comparison, split="valid"))


@pytest.mark.parametrize(
    ("parity", "why"), [(None, "export it with that runtime"), ({"state": "refused", "reason": "12 flips"}, "refused: 12 flips")]
)
def test_a_runtime_that_was_never_verified_is_not_recommended(parity, why):
    """However good its figures: `promote` would refuse it, and the page says so."""
    comparison = good_comparison(replace(good_row(accuracy=0.99), parity=parity), verdicts=said("better"))
    advice = report.recommend(comparison)
    assert advice.row.version == 1
    label = f"{comparison.names[CHALLENGER]} · openvino"
    assert f"{label} was never verified against torch, and no gate takes it ({why})." in advice.undecided


def test_without_any_verified_row_the_others_are_judged_as_before():
    """One is recommended still, and never one that failed the batch audit; torch and foreign models ask for no parity."""
    rows = tuple(replace(row, parity=None) for row in good_comparison(good_row(accuracy=0.99)).rows)
    nobody = good_comparison(rows=rows, verdicts=said("better"))
    assert report.recommend(nobody).row.version == 2
    failed = replace(nobody, rows=(rows[0], replace(rows[1], batch_invariant=False)))
    assert report.recommend(failed).row.version == 1
    for changes in ({"foreign": True}, {"runtime": "torch"}):
        runtime = changes.get("runtime", nobody.reference_runtime)
        asked = replace(nobody, rows=tuple(replace(row, **changes) for row in rows), reference_runtime=runtime)
        assert not any("verified" in text for text in report.recommend(asked).undecided)


def test_a_noisy_measurement_decides_no_tie():
    """Above a floor of 5 % the more accurate of the level rows is taken, and the noise is named."""
    comparison = good_comparison(good_row(p50_ms=0.5, accuracy=0.855), verdicts=said("non-inferior"), noise_floor=0.2)
    advice = report.recommend(comparison)
    assert advice.row.version == 1
    assert any("20.0%" in text for text in advice.undecided)


@pytest.mark.parametrize("where", ["parity", "card"])
def test_validation_chooses_among_equals_and_the_test_faces_do_not(where):
    """The row with the lower figure here and the higher one there is taken, and the reason says so; unknown: the more accurate."""
    card = {"fingerprint": "f" * 64}

    def validated(row, accuracy, fingerprint="f" * 64):
        if where == "parity":
            # what export saw on those faces is flattered where they fitted a bias per class
            parity = {"state": "verified", "accuracy": 0.99, "change": accuracy - 0.86}
            return replace(row, parity=parity, card={"fingerprint": fingerprint, "validation": {"accuracy": 0.86}})
        card = {"fingerprint": fingerprint, "validation": {"accuracy": accuracy}}
        return replace(row, parity={"state": "verified"}, card=card)

    comparison = good_comparison(good_row(accuracy=0.855), verdicts=said("non-inferior"), noise_floor=0.2)
    reference, challenger = comparison.rows
    assert reference.accuracy > challenger.accuracy
    for better, other, expected in (
        (validated(challenger, 0.88), validated(reference, 0.87), 2),
        (validated(challenger, 0.86), validated(reference, 0.87), 1),
        (validated(challenger, 0.88), replace(reference, parity={"state": "verified"}, card=card), 1),  # one has none
        (validated(challenger, 0.88), validated(reference, 0.87, "e" * 64), 1),  # other validation faces
    ):
        advice = report.recommend(replace(comparison, rows=(other, better)))
        assert advice.row.version == expected
    advice = report.recommend(replace(comparison, rows=(validated(reference, 0.87), validated(challenger, 0.88))))
    assert any("highest accuracy on validation is taken (88.00 %)" in reason for reason in advice.reasons)


def test_noise_or_not_the_same_accuracy_is_taken_in_what_looked_quicker():
    """One network in two runtimes: torch at four times the time is not recommended because of a noisy clock."""
    slow, quick = good_row(p50_ms=19.5), good_row(p50_ms=4.7, runtime="onnx")
    comparison = good_comparison(slow, verdicts=said("better"), noise_floor=0.09)
    alike = replace(comparison.verdicts[0], runtime="onnx")
    comparison = replace(comparison, rows=(*comparison.rows, quick), verdicts=(*comparison.verdicts, alike))
    assert report.recommend(comparison).row.runtime == "onnx"


def test_labels_in_charts_are_escaped():
    """A model's name is text, never markup."""
    svg = charts.forest([charts.Change("<script>", 1.0, -1.0, 2.0, "undecided")], 1.5)
    assert "<script>" not in svg
    assert "&lt;script&gt;" in svg


def test_labels_of_dots_that_lie_together_stay_inside_and_apart():
    """Ten alike dots: ten lines, none above the picture's edge, no two on one line."""
    boxes = [charts.Box(f"model {i} in a runtime", 5.0, 4.9, 5.1, 0.81, 0.79, 0.82, 20.0, i, True, None) for i in range(10)]
    svg = charts.pareto(boxes, "per face")
    lines = [float(y) for y in re.findall(r'class="mark" x="[0-9.]+" y="([-0-9.]+)"', svg)]
    assert len(lines) == 10
    assert min(lines) > 12
    assert min(abs(a - b) for i, a in enumerate(lines) for b in lines[:i]) >= 13
