"""One network against itself, called faster or slower: 100 interleaved A/A runs on one machine.

    python experiments/bench/aa_latency.py BUNDLE [--runtime openvino] [--runs 100] [--seconds 1]

Each run opens the artifact three times (reference, candidate, A/A control), measures them in twenty interleaved rounds and
asks the code behind every latency verdict. Runs are appended to experiments/results/statistics/aa_latency.jsonl, so that an
interrupted series goes on where it stopped (other artifact, runtime or host: give another --out). About 4 s per run at
--seconds 1. The last line says how many of the runs were called faster or slower; at most 2 of 100 is the promise.
Leave the machine alone meanwhile: a noisy run is called undecided, which costs nothing but power.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import Counter
from pathlib import Path

from fer_lab.core.types import LatencySpec
from fer_lab.measure import latency, stats, verdicts
from fer_lab.measure.candidates import from_path
from fer_lab.measure.host import load_average, this_host

OUT = Path(__file__).resolve().parents[1] / "results" / "statistics" / "aa_latency.jsonl"


def one_run(path: str, runtime: str, seconds: float) -> dict[str, object]:
    """Measure the artifact against itself and return what was said."""
    candidate = from_path(path, "ferplus8")
    timed = [
        latency.Timed(name, lambda: candidate.open(runtime, 1, "ferplus8"), LatencySpec(runtime, 1, 1)) for name in ("a", "again")
    ]
    measured = latency.measure_with_control(timed, latency.Budget(seconds=seconds))
    first, second = measured.profiles
    ratio, p = stats.latency_ratio(first.rounds, second.rounds)
    word, reason = verdicts.latency_word(ratio, measured.floor, p)
    return {
        "word": word, "ratio": round(ratio.value, 5), "low": round(ratio.low, 5), "high": round(ratio.high, 5), "p": p,
        "floor": round(measured.floor, 5), "samples": len(first.samples_ms), "p50_ms": round(first.percentile_ms(50), 4),
        "steal": measured.steal, "load_average": load_average(), "reason": reason,
    }  # fmt: skip


def main() -> None:
    """Run what is missing of the series and sum it up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--runtime", default="openvino")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    host = this_host()
    candidate = from_path(args.bundle, "ferplus8")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=OUT.parents[2]).stdout.strip()
    head = {
        "command": "python experiments/bench/aa_latency.py BUNDLE", "digest": candidate.digest(args.runtime),
        "runtime": args.runtime, "host": host.name, "flags": list(host.flags), "versions": dict(host.versions),
        "threads": 1, "batch": 1, "seconds": args.seconds, "commit": commit or "unknown",
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not args.out.is_file():
        args.out.write_text(json.dumps(head) + "\n", encoding="utf-8")
    before, *lines = (json.loads(line) for line in args.out.read_text(encoding="utf-8").splitlines())
    if any(before[key] != head[key] for key in ("digest", "runtime", "host", "seconds")):
        raise SystemExit(f"{args.out} holds the series of another artifact, runtime, host or length; give another --out")
    with args.out.open("a", encoding="utf-8") as file:
        while len(lines) < args.runs:
            lines.append(one_run(args.bundle, args.runtime, args.seconds))
            file.write(json.dumps(lines[-1]) + "\n")
            file.flush()
    words = Counter(line["word"] for line in lines)
    noisy = sum(line["floor"] > verdicts.NOISY for line in lines)
    called = words["better"] + words["worse"]
    print(json.dumps({"runs": len(lines), "called_faster_or_slower": called, "words": dict(words), "noisy": noisy}))


if __name__ == "__main__":
    main()
