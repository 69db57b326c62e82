"""Run all notebooks in a new kernel, as a class would. Fail on an error, a warning or a timeout.

    python -m notebooks.run                  # all eight; writes nothing
    python -m notebooks.run --write          # and keeps their outputs in the notebooks
    python -m notebooks.run 3b_ppo --write   # one of them
"""
import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

from data.flags import guarded

HERE = Path(__file__).parent
# Seconds that a lesson may take on two idle cores. More is reported. A single cell that takes three
# times as long is an error.
LIMIT = 120


def run(path, write):
    """Execute one notebook. Return (seconds, complaints)."""
    start = time.time()
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None
    complaints = []
    client = NotebookClient(
        notebook, timeout=3 * LIMIT, kernel_name="python3",
        resources={"metadata": {"path": str(HERE)}})
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError) as error:
        *_, last_line = str(error).strip().split("\n")
        complaints.append(last_line)
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error" or output.get("name") == "stderr":
                text = output.get("text", output.get("ename", ""))
                complaints.append(f"cell {number}: {text[:200]}")
        cell.metadata.pop("execution", None)
    if write and not complaints:
        nbformat.write(notebook, path)
    return time.time() - start, complaints


def verdict(seconds, complaints):
    """Return the complaints of one notebook as one line, or "ok"."""
    if complaints:
        return "; ".join(complaints)
    return "ok" if seconds < LIMIT else f"ok, but over {LIMIT} s"


def main():
    """Run the command line. Return whether a notebook failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks, without .ipynb; all if none is named")
    parser.add_argument("--write", action="store_true", help="keep the outputs in the notebooks")
    args = parser.parse_args()
    all_paths = sorted(HERE.glob("*.ipynb"))
    paths = [HERE / f"{name}.ipynb" for name in args.names] or all_paths
    for path in paths:
        if not path.exists():
            known = ", ".join(known_path.stem for known_path in all_paths)
            parser.error(f"there is no {path.name}; there are {known}")

    os.environ |= {"LESSON_UNATTENDED": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    total = 0.0
    failed = False
    for path in paths:
        seconds, complaints = run(path, args.write)
        total += seconds
        failed = failed or bool(complaints)
        print(f"{path.stem:28} {seconds:6.0f} s  {verdict(seconds, complaints)}", flush=True)
    print(f"{len(paths)} notebooks in {total:.0f} s")
    return failed


if __name__ == "__main__":
    guarded(lambda: sys.exit(main()))
