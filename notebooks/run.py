"""Runs all notebooks from a clean kernel, as a class would, and fails on an error, a warning or a cell that does not end.

    python -m notebooks.run                  # all six; writes nothing
    python -m notebooks.run --write          # and keeps their outputs in the notebooks
    python -m notebooks.run 3_ppo --write    # one of them
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
LIMIT = 120                                 # seconds that a lesson may take on two idle cores: more is reported; a cell that takes three times that is an error


def run(path, write):
    """Executes one notebook; returns (seconds, complaints)."""
    notebook, start, complaints = nbformat.read(path, as_version=4), time.time(), []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    try:
        NotebookClient(notebook, timeout=3 * LIMIT, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    except (CellExecutionError, CellTimeoutError) as error:
        complaints.append(str(error).strip().rsplit("\n", 1)[-1])
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error" or output.get("name") == "stderr":
                complaints.append(f"cell {number}: {output.get('text', output.get('ename', ''))[:200]}")
        cell.metadata.pop("execution", None)
    if write and not complaints:
        nbformat.write(notebook, path)
    return time.time() - start, complaints


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks, without .ipynb; all if none is named")
    parser.add_argument("--write", action="store_true", help="keep the outputs in the notebooks")
    flags = parser.parse_args()
    paths = [HERE / f"{name}.ipynb" for name in flags.names] or sorted(HERE.glob("*.ipynb"))
    for path in paths:
        if not path.exists():
            parser.error(f"there is no {path.name}; there are {', '.join(p.stem for p in sorted(HERE.glob('*.ipynb')))}")
    os.environ |= {"LESSON_UNATTENDED": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    total, failed = 0.0, False
    for path in paths:
        seconds, complaints = run(path, flags.write)
        total, failed = total + seconds, failed or bool(complaints)
        print(f"{path.stem:28} {seconds:6.0f} s  {'; '.join(complaints) or ('ok' if seconds < LIMIT else f'ok, but over {LIMIT} s')}", flush=True)
    print(f"{len(paths)} notebooks in {total:.0f} s")
    return failed


if __name__ == "__main__":
    guarded(lambda: sys.exit(main()))
