"""What is known about the toy world. The world's files import no torch and no script."""
import os

# Small matrices make torch's two or more threads meet thousands of times per second. GNU's OpenMP
# lets the first one spin for milliseconds before it sleeps. If another program is busy, the thread
# that it waits for may not even be running, and the processor's time is lost. 1,000 turns (some
# microseconds) cost nothing on an idle machine, and save a quarter to a half of the time on a busy
# one. It is read when torch is imported, so each script imports this package first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
