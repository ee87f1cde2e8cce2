"""A comparison to read and to cite: leaderboard.csv, .md, .tex and methods.md, each figure with its n and interval."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from fer_lab.core.files import write_whole
from fer_lab.measure.comparison import Comparison, Profile, Row
from fer_lab.measure.metrics import ECE_BINS

FLAT = tuple(
    f.name for f in fields(Row)
    if f.name not in ("per_class", "confusion", "slices", "robustness", "audit", "parity", "card", "seeds")
)  # fmt: skip
REFERENCES = (
    "E. Barsoum, C. Zhang, C. Canton Ferrer, Z. Zhang. Training Deep Networks for Facial Expression Recognition with "
    "Crowd-Sourced Label Distribution. ICMI 2016.",
    "I. Goodfellow et al. Challenges in Representation Learning. ICONIP 2013 (FER2013).",
    "Q. McNemar. Note on the sampling error of the difference between correlated proportions or percentages. Psychometrika 1947.",
    "T. Tango. Equivalence test and confidence interval for the difference in proportions for the paired-sample design. "
    "Statistics in Medicine 1998.",
    "E. B. Wilson. Probable inference, the law of succession, and statistical inference. JASA 1927.",
    "G. Y. Zou, A. Donner. Construction of confidence limits about effect measures: A general approach. Statistics in Medicine "
    "2008.",
    "S. Holm. A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 1979.",
    "C. Guo, G. Pleiss, Y. Sun, K. Weinberger. On Calibration of Modern Neural Networks. ICML 2017.",
    "K. Wang, X. Peng, J. Yang, D. Meng, Y. Qiao. Region Attention Networks for Pose and Occlusion Robust FER. IEEE TIP 2020 "
    "(slices).",
)


def write(comparison: Comparison, folder: Path) -> None:
    """Write the four files of TEXTS."""
    for name, make in TEXTS.items():
        write_whole(folder / name, make(comparison))


def leaderboard_csv(comparison: Comparison) -> str:
    """One line per model × runtime, every plain figure a column, best accuracy first; the verdict on accuracy last."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*FLAT, "seeds", "seed_sd", "protocol", "label_source", "split", "verdict", "change", "change_low", "change_high"]
    )
    for row in ranked(comparison):
        said = next(iter(comparison.verdicts_of(row, "accuracy")), None)
        writer.writerow(
            [
                *("" if getattr(row, name) is None else getattr(row, name) for name in FLAT),
                len(row.seeds.runs) if row.seeds else "", row.seeds.sd if row.seeds else "",
                comparison.protocol, comparison.label_source, comparison.split,
                *((said.verdict, said.change, said.low, said.high) if said else ("reference", "", "", "")),
            ]
        )  # fmt: skip
    return text.getvalue()


def leaderboard_md(comparison: Comparison) -> str:
    """A table for a README: accuracy, clean, macro figures, calibration, slices, latency, size and the verdict on accuracy."""
    rows = ranked(comparison)
    slices = {name: share.n for name, share in rows[0].slices.items()}
    head = [
        "Model", "Runtime", f"Accuracy %, n {comparison.n} (95 %)", f"Clean %, n {rows[0].clean_n}", "Macro recall % (95 %)",
        "Macro F1 %", "ECE", "KL to votes", *(f"{_md(name)} %, n {n}" for name, n in slices.items()), "p50 / p95 ms", "MB",
        "Verdict",
    ]  # fmt: skip
    rule = ["---" if name in ("Model", "Runtime", "Verdict") else "---:" for name in head]
    lines = [f"{_md(_setting(comparison))}.", "", _md_line(head), _md_line(rule)]
    for row in rows:
        said = next(iter(comparison.verdicts_of(row, "accuracy")), None)
        backbone = None if row.foreign else row.card.get("backbone")
        cells = [
            _md(comparison.names[row.model]) + (f" ({_md(str(backbone))})" if backbone else ""), row.runtime,
            f"{percent(row.accuracy)}{_seeds(row)}{_interval(row.accuracy_low, row.accuracy_high, '–')}",
            percent(row.clean_accuracy),
            f"{percent(row.macro_recall)}{_interval(row.macro_recall_low, row.macro_recall_high, '–')}", percent(row.macro_f1),
            f"{row.ece:.3f}", f"{row.kl_to_votes:.3f}",
            *(percent(row.slices[name].accuracy if name in row.slices else None) for name in slices),
            "–" if row.p50_ms is None or row.p95_ms is None else f"{row.p50_ms:.2f} / {row.p95_ms:.2f}",
            f"{row.size_mb:.1f}", said.verdict if said else "reference",
        ]  # fmt: skip
        lines.append(_md_line(cells))
    return "\n".join([*lines, ""])


def leaderboard_tex(comparison: Comparison) -> str:
    """A booktabs table; the best accuracy and all that do not differ from it by their intervals are set bold."""
    rows = ranked(comparison)
    floor = rows[0].accuracy_low
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{table}",
        f"\\caption{{{_tex(_caption(comparison))}}}",
        "\\begin{tabular}{llrrrrrrr}",
        "\\toprule",
        "Model & Runtime & Accuracy (95\\,\\%) & Macro recall (95\\,\\%) & Macro F1 & ECE & p50 (ms) & p95 (ms) & MB \\\\",
        "\\midrule",
    ]
    for row in rows:
        accuracy = percent(row.accuracy)
        shown = f"\\textbf{{{accuracy}}}" if row.accuracy_high >= floor and row.accuracy >= floor else accuracy
        spread = _seeds(row).replace("±", "$\\pm$")
        cells = [
            _tex(comparison.names[row.model]), _tex(row.runtime),
            f"{shown}{spread}{_interval(row.accuracy_low, row.accuracy_high, '--')}",
            f"{percent(row.macro_recall)}{_interval(row.macro_recall_low, row.macro_recall_high, '--')}", percent(row.macro_f1),
            f"{row.ece:.3f}",
            "--" if row.p50_ms is None else f"{row.p50_ms:.2f}", "--" if row.p95_ms is None else f"{row.p95_ms:.2f}",
            f"{row.size_mb:.1f}",
        ]  # fmt: skip
        lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def methods(comparison: Comparison) -> str:
    """The methods section: faces, rules, statistics, hardware, looks, references."""
    c = comparison
    versions = ", ".join(f"{name} {version}" for name, version in c.host.versions.items())
    seeds = [row for row in c.rows if row.seeds]
    paragraphs = [
        f"# Methods of comparison {c.id}",
        f"**Faces.** {c.n} faces of the {c.split} split of {c.dataset} (label source {c.label_source}, fingerprint "
        f"`{c.fingerprint[:16]}`), protocol {c.protocol}: votes of 1 are set to 0 over all ten columns, a face is kept when "
        f"its largest "
        f"column holds more than half of what is left and belongs to the {len(c.labels)} labels ({', '.join(c.labels)}). "
        f"{c.rows[0].clean_n} of them have no exact pixel twin in {splits_before(c.split)} (*clean*). Of the votes "
        f"for one of the {len(c.labels)} labels {c.rows[0].human_agreement:.1%} are for the majority label, on average over the "
        f"faces: so often an annotator who names one of them agrees with it.",
        f"**Figures.** Accuracy with Wilson 95 % intervals; macro means over the classes that have faces, the interval of macro "
        f"recall from the Wilson intervals of the classes (MOVER); *F1 of macro P and "
        f"R* is the "
        f"harmonic mean of macro precision and macro recall; the Brier score is summed over classes (0–2); the calibration "
        f"error uses "
        f"{ECE_BINS} equal-width bins of the top probability{_perfect(c)}; KL and Jensen–Shannon "
        f"divergence to the vote distribution in nats.",
        f"**Verdicts** are against {c.names[c.reference_model]} · {c.reference_runtime}. Accuracy is primary: McNemar's exact test "
        f"at 5 % on the same faces decides better or worse; else non-inferior when the 95 % paired score interval lies above "
        f"−{c.margin * 100:g} points; else undecided. Brier score (paired bootstrap over faces), classes and slices with at least "
        "30 faces, and latency are secondary, Holm-corrected together per candidate; their intervals are at the level at which "
        "Holm judged them.",
    ]
    timed = timing(c)
    if timed is not None:
        paragraphs.append(_latency(c, timed))
    if seeds:
        paragraphs.append(
            "**Seeds.** "
            + "; ".join(
                f"{c.names[r.model]}: {len(r.seeds.runs)} runs, {r.seeds.mean:.2%} ± {r.seeds.sd:.2%} (sd), 95 % of the mean "
                f"{r.seeds.low:.2%}–{r.seeds.high:.2%}"
                for r in seeds
                if r.seeds
            )
            + "."
        )
    else:
        paragraphs.append("**Seeds.** Every row is one run; the spread between seeds is not part of these intervals.")
    if c.split == "test":
        counted = "not counted (no registered model took part)" if c.looks is None else f"{c.looks}, this one included"
        paragraphs.append(f"**Looks at the test split** by this registry's models of the family: {counted}.")
    paragraphs += [f"**Host.** {c.host.cpu}, {c.host.cores} cores, {c.host.system}. {versions}."]
    if c.notes:
        paragraphs.append("**Notes.** " + ". ".join(note[0].upper() + note[1:] for note in c.notes) + ".")
    references = "\n".join(f"{i}. {text}" for i, text in enumerate(REFERENCES, 1))
    return "\n\n".join([*paragraphs, f"## References\n\n{references}"]) + "\n"


TEXTS = {
    "leaderboard.csv": leaderboard_csv,
    "leaderboard.md": leaderboard_md,
    "leaderboard.tex": leaderboard_tex,
    "methods.md": methods,
}
"""File → what makes its text."""


def splits_before(split: str) -> str:
    """The splits in which a face of this one must have no twin to be clean (`audits.clean_mask`), in words."""
    return "train or valid" if split == "test" else "train"


def ranked(comparison: Comparison) -> list[Row]:
    """The rows, best accuracy first, the quicker one first among equals."""
    return sorted(comparison.rows, key=lambda row: (-row.accuracy, row.p50_ms if row.p50_ms is not None else float("inf")))


def timing(c: Comparison) -> Profile | None:
    """The first profile that a row's latency figures come from: its host, threads, batch and noise floor are those of all rows."""
    return next((profile for row in c.rows if (profile := c.timing_of(row)) is not None), None)


def control(c: Comparison, timed: Profile) -> str:
    """Name and runtime of what was timed twice, against itself, beside a profile: the first of its group (`profiles.take`)."""

    def group(p: Profile) -> tuple[str, int, int, bool]:
        return p.host.name, p.spec.threads, p.spec.batch, p.spec.end_to_end

    return timed_name(c, next(p for p in c.profiles if group(p) == group(timed)))


def timed_name(c: Comparison, profile: Profile) -> str:
    """Name and runtime of what a profile timed; of an artifact without a row, as it was named where it was measured."""
    timed = profile.latency.digest, profile.runtime
    name = next((c.names[row.model] for row in c.rows if (row.digest, row.runtime) == timed), profile.latency.model)
    return f"{name} · {profile.runtime}"


def per_call(batch: int | None) -> str:
    """What a latency in ms is of.

    >>> per_call(1), per_call(8)
    ('per face', 'per call of 8 faces')
    """
    return "per face" if batch in (None, 1) else f"per call of {batch} faces"


def percent(share: float | None, digits: int = 2) -> str:
    """A share in percent without its sign, for a cell of a table: 0.8432 → `84.32`, and a dash for None."""
    return "–" if share is None else f"{share * 100:.{digits}f}"


def _latency(c: Comparison, timed: Profile) -> str:
    host, spec = timed.host, timed.spec
    threads = "1 thread" if spec.threads == 1 else f"{spec.threads} threads"
    fewest = min(row.samples for row in c.rows if c.timing_of(row) is not None)
    return (
        f"**Latency** on {host.cpu} ({host.system}; {' '.join(host.flags) or 'no flags known'}), {threads}, batch {spec.batch}: "
        f"candidates interleaved in {len(timed.latency.rounds)} rounds in forward and reverse order, warm-up and the first call of "
        f"each turn left out, at least {fewest} samples per row. The ratio of medians per round is compared; its interval "
        f"resamples rounds. {control(c, timed)} against itself (A/A) gave a noise floor of {_floor(timed.noise_floor)}; faster or "
        "slower needs a ratio beyond the larger of 2 % and this floor."
    )


def _interval(low: float | None, high: float | None, dash: str) -> str:
    return "" if low is None or high is None else f" ({percent(low, 1)}{dash}{percent(high, 1)})"


def _seeds(row: Row) -> str:
    return f" ± {row.seeds.sd * 100:.2f} ({len(row.seeds.runs)} seeds)" if row.seeds else ""


def _setting(c: Comparison) -> str:
    timed = next((f"; latency at batch {row.batch} on {row.host}" for row in c.rows if row.host), "")
    return f"{c.dataset} ({c.label_source}), protocol {c.protocol}, {c.split} split, n = {c.n}. Wilson 95 % intervals{timed}"


def _caption(c: Comparison) -> str:
    return f"{_setting(c)}. Bold: the best and those whose accuracy lies within its interval."


def calibration_floor(c: Comparison) -> str:
    """The ECE that perfectly calibrated models as confident as these would show: `0.013`, `0.012 to 0.014`, or nothing."""
    floors = sorted(f"{row.ece_floor:.3f}" for row in c.rows if row.ece_floor is not None)
    return "" if not floors else floors[0] if floors[0] == floors[-1] else f"{floors[0]} to {floors[-1]}"


def _perfect(c: Comparison) -> str:
    floor = calibration_floor(c)
    return f" (a perfectly calibrated model would show about {floor} on so many faces)" if floor else ""


def _floor(floor: float | None) -> str:
    return "unknown size" if floor is None else f"{floor:.1%}"


def _md_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md(text: str) -> str:
    return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", " ".join(text.split()))


def _tex(text: str) -> str:
    for mark in ("\\", "&", "%", "$", "#", "_", "{", "}"):
        text = text.replace(mark, "\\textbackslash{}" if mark == "\\" else f"\\{mark}")
    return text.replace("~", "\\textasciitilde{}").replace("^", "\\textasciicircum{}")
