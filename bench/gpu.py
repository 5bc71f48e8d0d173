"""Is every kernel right on this GPU, and how fast is it? ``make gpu``: ten minutes, with torch and Triton alone.

First the checks of `bench.proof.checks`, in several processes, the newest paths first; then layers and steps, eager and
captured, and as much of the rest of the suite as there is time for; then single kernels and designs. Points and
providers that need other libraries are left out where those are not installed. What was left out is listed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from bench.cases import get_cases
from bench.measure.case import SkippedError
from bench.measure.results import FOLDER, Record, Results, point_name
from bench.proof.checks import get_checks
from bench.suite.run import run
from bench.tuning import profile
from fe_adapter.errors import InputError

PASSED, NOT_RUN = "passed", "not run"
HANGS = 120  # seconds after which a check is taken to hang; compiling its kernels takes some ten
SHARE_OF_CHECKS = 5 / 9  # of all the time, from its start
SHARE_OF_SUITE = 8 / 9
DECIDES = ("layer", "step")  # cases, in this order; the rest follows


def main(arguments: list[str] | None = None) -> int:
    """What ``make gpu`` runs; 1 where a check failed or a provider was wrong, 3 where only some was not run in time."""
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, help="JSON file of the results; default bench/results/CARD-DATE.json")
    parser.add_argument("--seconds", type=float, default=540, help="be done after about this time")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; on a CPU, too")
    parser.add_argument("--check", metavar="TEXT", help="only checks with this in their name, and no timing")
    options = parser.parse_args(arguments)
    start, has_gpu = time.monotonic(), torch.cuda.is_available()
    if not has_gpu and not options.quick:
        raise InputError("there is no GPU here; --quick runs on a CPU, with TRITON_INTERPRET=1 the kernels as well")
    device = torch.device("cuda" if has_gpu else "cpu")
    card = torch.cuda.get_device_name().lower().replace(" ", "-") if has_gpu else "cpu"
    keeps = not options.quick and options.check is None
    results = Results(options.out or (FOLDER / f"{card}-{date.today()}.json" if keeps else None), quick=options.quick)

    checks = partial(get_checks, device, options.quick)
    run_checks(results, checks, start + SHARE_OF_CHECKS * options.seconds, options.check or "")
    outcomes = results.content["checks"]
    if not outcomes:
        raise InputError(f"no check has {options.check!r} in its name")
    counts = collections.Counter(outcome.partition(":")[0] for outcome in outcomes.values())
    print(f"{', '.join(f'{n} {what}' for what, n in counts.items())}, {time.monotonic() - start:.0f} s")
    for name, outcome in outcomes.items():
        if outcome != PASSED:
            print(f"  {name}: {outcome}")
    if options.check is None:
        names = [*DECIDES, *(name for name in get_cases() if name not in DECIDES)]
        deadline = start + SHARE_OF_SUITE * options.seconds
        for record in run(results, names, options.quick, deadline=deadline, thorough=False):
            show(record)
        if has_gpu:
            profile_kernels(results, start + options.seconds)
    if counts["failed"] or any(record["failures"] for record in results.content["records"]):
        return 1
    left_out = not_run(results.content)
    if left_out:
        print(f"{len(left_out)} not run, for want of time:", *left_out, sep="\n  ")
    return 3 if left_out else 0


def not_run(content: dict) -> list[str]:
    """What a run had no time for: checks, points of the suite, kernels."""
    done = {f"{record['case']} {point_name(record)}" for record in content["records"]}
    checks = [f"check {name}" for name, outcome in content["checks"].items() if outcome == NOT_RUN]
    points = [name for name in content.get("planned", ()) if name not in done]
    kernels = [f"kernels of {profile.summary(r)}" for r in content.get("kernels", ()) if r.get("failed") == NOT_RUN]
    return [*checks, *points, *kernels]


def profile_kernels(results: Results, deadline: float) -> None:
    """Put what each kernel takes, by design, into ``results``, until ``deadline`` (of `time.monotonic`)."""
    results.content["kernels"] = []
    for record in profile.records(deadline=deadline):
        results.content["kernels"].append(record)
        results.write()
        print(f"kernels of {profile.summary(record)}", flush=True)


def run_checks(results: Results, get: Callable[[], dict[str, Callable]], deadline: float, only: str = "") -> None:
    """Put what becomes of every check of ``get()`` with ``only`` in its name into ``results``, on disk after each.

    "passed", "skipped: why" or "failed: why"; "not run" is what was not done by ``deadline`` (of `time.monotonic`).
    Several processes share the checks. One in which a check failed ends: a CUDA error would spoil all that follow.
    """
    outcomes = {name: NOT_RUN for name in get() if only in name}
    results.content["checks"] = outcomes
    results.write()
    todo, lock = collections.deque(outcomes), threading.Lock()

    def work() -> None:
        worker = None
        while time.monotonic() < deadline:
            with lock:
                if not todo:
                    break
                name = todo.popleft()
            worker = worker or Checker(get)
            outcome = worker.run(name, deadline)
            with lock:
                outcomes[name] = outcome
                results.write()
                print(f"{outcome.partition(':')[0]}  {name}", flush=True)
            if outcome.startswith(("failed", NOT_RUN)):
                worker.end()
                worker = None
        if worker is not None:
            worker.end()

    num_workers = max(1, min(15, (os.cpu_count() or 1) - 1))  # compiling takes most of the time, a core each
    with ThreadPoolExecutor(num_workers) as pool:
        futures = [pool.submit(work) for _ in range(num_workers)]
        try:
            for future in futures:
                future.result()
        finally:
            todo.clear()  # interrupted, or out of disk: only what is under way still ends


class Checker:
    """A process that runs checks of ``get()``, one after the other."""

    def __init__(self, get: Callable[[], dict[str, Callable]]) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, get))
        self.process.start()
        theirs.close()  # that its end shows here

    def run(self, name: str, deadline: float) -> str:
        """The outcome of a check: see `run_checks`."""
        left = deadline - time.monotonic()
        try:
            self.connection.send(name)
            if self.connection.poll(max(0, min(HANGS, left))):
                return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return f"failed: its process ended with code {self.process.exitcode}"
        return NOT_RUN if left < HANGS else f"failed: not done after {HANGS} s"

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.connection.close()  # which it takes as the end, if it still listens
        self.process.join(timeout=5)
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, get: Callable[[], dict[str, Callable]]) -> None:
    """What a worker's process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted; a check under way still ends
    checks = get()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent needs this process no longer
        while True:
            name = connection.recv()
            torch.manual_seed(0)
            try:
                checks[name]()
            except SkippedError as reason:
                outcome = f"skipped: {reason}"
            except torch.OutOfMemoryError:
                outcome = "skipped: out of memory, beside the other processes"
            except Exception as error:
                traceback.print_exc()
                outcome = f"failed: {type(error).__name__}: {error}".splitlines()[0]
            else:
                outcome = PASSED
            if torch.cuda.is_initialized() and not outcome.startswith("failed"):
                gc.collect()  # the processes share the GPU's memory
                torch.cuda.empty_cache()
            connection.send(outcome)


def show(record: Record) -> None:
    """One point of the suite, as text."""
    print(f"{record['case']} {point_name(record)} ({record['seconds']:.0f} s)")
    medians = {name: statistics.median(provider["ms"]) for name, provider in record["providers"].items()}
    for name, ms in medians.items():
        print(f"  {ms:9.3f} ms  {ms / medians[record['baseline']]:6.2f} of {record['baseline']}  {name}")
    for what, reasons in (("skipped", record["skipped"]), ("failures", record["failures"])):
        for name, why in reasons.items():
            print(f"  {what}: {name}: {why}")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
