"""Compare methods fairly: methods x seeds (x students) from one small file, as tables and a report.

    python compare.py results/demo.toml                  # train what is missing, score, write results/demo/
    python compare.py results/demo.toml --dry-run        # what is done, and the commands of what is not
    python compare.py results/demo.toml --jobs 4         # four runs at a time, on as many GPUs as there are
    python compare.py results/demo.toml --only feature both   # train these methods alone
    python compare.py results/demo.toml --report-only    # no training: score and write what there is

Stopped or broken off, the same command goes on; what is done is not done again. The file is described in
comparison/plan.py. Every method has the same budget: it may set its losses, its teacher, the weights that the student
starts from, pictures without masks, gradient clipping and averaged weights, nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from basics.errors import UserError, choose, run_cli
from basics.files import replacing, write_text
from comparison.budgets import BUDGETS, budgets_png
from comparison.markdown import to_markdown
from comparison.plan import Plan, Run, check_files, load_plan
from comparison.report import to_html
from comparison.runs import state_of, train_missing
from comparison.scoring import Comparison, gather
from comparison.statistics import summarize
from comparison.tables import runs_csv, summary_csv, to_tex


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, metavar="FILE.toml", help="methods, seeds, students and their arguments")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="train these methods alone")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs trained at a time (1)")
    parser.add_argument("--dry-run", action="store_true", help="say what is done and what would be run, end")
    parser.add_argument("--report-only", action="store_true", help="train nothing; write what finished runs give")
    parser.add_argument("--output-dir", type=Path, default=Path("checkpoints"), metavar="DIR",
                        help="the runs lie in DIR/NAME (checkpoints)")  # fmt: skip
    parser.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR",
                        help="tables and report go to DIR/NAME (results)")  # fmt: skip
    return parser


def chosen_runs(plan: Plan, only: list[str]) -> list[Run]:
    """The runs to train: of all methods, or of those asked for."""
    for method in only:
        choose(dict.fromkeys(plan.methods), method, f"method of {plan.path}:")
    return [run for run in plan.runs if not only or run.method in only]


def show(runs: list[Run]) -> None:
    """Print each run's state, and the command of those that are not done."""
    for run in runs:
        state = state_of(run)
        print(f"{run.name}: {state}" + ("" if state.kind == "done" else f"\n  {run.command}"))


def write_results(comparison: Comparison, folder: Path) -> None:
    """Write the tables and the report to ``folder``."""
    lines = summarize(comparison)
    files = {
        "results.md": to_markdown(comparison, lines),
        "results.csv": runs_csv(comparison),
        "summary.csv": summary_csv(lines),
        "results.tex": to_tex(comparison, lines),
        "config.toml": comparison.plan.text,
        "report.html": to_html(comparison, lines),
    }
    for name, text in files.items():
        write_text(folder / name, text)
    names = list(files)
    if comparison.plan.has_budgets:
        with replacing(folder / BUDGETS) as temporary:
            temporary.write_bytes(budgets_png(comparison, lines))
        names.append(BUDGETS)
    print(f"{folder}: {', '.join(names)}")


def main(args: argparse.Namespace) -> int:
    if args.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {args.jobs}")
    plan = load_plan(args.plan, args.output_dir)
    runs = chosen_runs(plan, args.only)
    if args.dry_run:
        show(runs)
    check_files(plan)
    if args.dry_run:
        return 0
    failures = [] if args.report_only else train_missing(plan, runs, args.jobs)
    finished = [run for run in plan.runs if state_of(run).kind == "done"]
    if finished:
        write_results(gather(plan, finished), args.results_dir / plan.name)
    elif args.report_only:
        raise UserError(f"{plan.folder}: no run of {plan.path} is done yet: leave --report-only out")
    if failures:
        raise UserError(
            f"{len(failures)} of {len(runs)} runs failed, the same command tries again: {'; '.join(failures)}"
        )
    return 0


if __name__ == "__main__":
    run_cli(main, get_args_parser)
