"""The committed results hold what is claimed of them: the simulations of the verdicts, and the comparisons, derived again."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest

from fer_lab import compare
from fer_lab.measure import comparison
from fer_lab.measure.paper import FLAT

RESULTS = Path(__file__).resolve().parents[3] / "experiments" / "results"
STATISTICS = RESULTS / "statistics"
COMPARISONS = sorted(path.parent for path in RESULTS.glob("*/comparison.json"))


@pytest.mark.parametrize("folder", COMPARISONS, ids=lambda path: path.name)
@pytest.mark.usefixtures("home")
def test_a_committed_comparison_is_derived_again_from_its_answers(folder: Path, tmp_path: Path) -> None:
    """README's command gives every published figure; to 1e-9, for processors add up in another order."""
    again = shutil.copytree(folder, tmp_path / "again")
    (again / "comparison.json").unlink()
    assert compare.main(["--replay", str(again), "--no-faces"]) == 0
    published, derived = comparison.read(folder), comparison.read(again)
    assert len(published.rows) == len(derived.rows) > 0
    for before, now in zip(published.rows, derived.rows, strict=True):
        for name in FLAT:
            expected = getattr(before, name)
            assert getattr(now, name) == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected), name
    said = [(v.model, v.runtime, v.aspect, v.verdict) for v in published.verdicts]
    assert said == [(v.model, v.runtime, v.aspect, v.verdict) for v in derived.verdicts]


@pytest.mark.usefixtures("home")
def test_the_table_of_the_ablation_is_derived_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`ablation.md`, to the letter, from the answers per face and `runs.json`."""
    script = runpy.run_path(str(RESULTS.parent / "ablation.py"))
    again = shutil.copytree(RESULTS / "ablation", tmp_path / "again")
    runs = json.loads((again / "runs.json").read_text(encoding="utf-8"))
    words = {row: " ".join((*script["SHORT"], "train.threads=1", *changes)) for row, changes in script["CHANGES"].items()}
    (again / "comparison.json").unlink()
    assert compare.main(["--replay", str(again), "--no-faces"]) == 0
    compared = json.loads(capsys.readouterr().out.splitlines()[-1])
    models = {row: f"runs:/{runs[words[row]]}" for row in words}
    assert script["_table"](models, compared) == (again / "ablation.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("document", "where"), [(RESULTS.parents[1] / "README.md", "experiments/results/"), (RESULTS / "README.md", "")]
)
def test_the_tables_show_the_records(document: Path, where: str) -> None:
    """Each row that links a record has that row's figures: accuracy, clean, recall, ECE, latency, size."""
    pattern = rf"^\|(.*)\| \[(\d+) · ([\w-]+)\]\({where}(\w+)/report\.html\) \|$"
    linked = re.findall(pattern, document.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(linked) >= 6
    for cells, version, runtime, folder in linked:
        record = comparison.read(RESULTS / folder)
        (row,) = [r for r in record.rows if (r.version, r.runtime) == (int(version), runtime)]
        said = [cell.strip() for cell in cells.split("|")]
        for expected in (
            f"{row.accuracy:.2%} ({row.accuracy_low:.1%}–{row.accuracy_high:.1%})".replace("%", ""),
            f"{row.clean_accuracy:.2%}".replace("%", ""),
            f"{row.macro_recall:.1%} ({row.macro_recall_low:.1%}–{row.macro_recall_high:.1%})".replace("%", ""),
            f"{row.ece:.3f}",
            f"{row.p50_ms:.1f} / {row.p95_ms:.1f}",
            f"{row.size_mb:.1f}",
        ):
            assert expected in said, (folder, version, runtime, expected)


@pytest.mark.parametrize("folder", COMPARISONS, ids=lambda path: path.name)
def test_no_face_lies_in_a_committed_report(folder: Path) -> None:
    """FERPlus' pictures are not ours to publish: `compare --replay` where they are prepared needs --no-faces."""
    assert "data:image" not in (folder / "report.html").read_text(encoding="utf-8")


def test_twins_are_called_different_in_at_most_five_percent():
    """False better or worse on the primary aspect, 1 000 resamples."""
    twins = json.loads((STATISTICS / "power.json").read_text(encoding="utf-8"))["twins"]
    assert twins["resamples"] == 1000
    assert sum(twins["words"].values()) == 1000
    assert twins["false_better_or_worse"] <= 0.05


def test_planted_gains_are_found():
    """1.5 and 2.5 points at n = 3 137 with 10 % disagreement: at least 70 % and 95 %; more gain is never found less."""
    power = json.loads((STATISTICS / "power.json").read_text(encoding="utf-8"))["power"]
    assert (power["n"], power["disagreement"]) == (3137, 0.10)
    better = {line["gain_points"]: line["better"] for line in power["curve"]}
    assert better[1.5] >= 0.70
    assert better[2.5] >= 0.95
    shares = [better[gain] for gain in sorted(better)]
    assert shares == sorted(shares)
    assert (STATISTICS / "power.png").stat().st_size > 10_000


def test_a_network_against_itself_is_hardly_ever_faster():
    """At most 2 of 100 interleaved A/A runs are called faster or slower."""
    path = STATISTICS / "aa_latency.jsonl"
    if not path.is_file():
        pytest.skip("the A/A series was not run; run experiments/bench/aa_latency.py on a quiet machine")
    head, *runs = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert head["host"]
    assert len(runs) >= 100
    assert sum(run["word"] in ("better", "worse") for run in runs[:100]) <= 2
