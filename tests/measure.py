"""What a command costs with all the processes that it starts, those included that outlive their parents:

    python tests/measure.py aic encode photos/ --out-dir coded/ --ray

prints a line of JSON: seconds of the clock, CPU seconds of all processes, and the peaks of the memory of
the command itself (resident) and of all together (proportional, so that what is shared counts once), in
MiB. All is sampled, as nobody is told the time of children that their parents do not wait for: of each
process up to a fifth of a second is missed. Linux only.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
TICKS = os.sysconf("SC_CLK_TCK")
EVERY, EVERY_MEMORY = 0.2, 2.0  # seconds between two looks


def processes():
    """Those below this one, with their CPU seconds."""
    children, used = {}, {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            process = int(status.parent.name)
            children.setdefault(int(fields[1]), []).append(process)
            used[process] = (int(fields[11]) + int(fields[12])) / TICKS
    found = [os.getpid()]
    for process in found:
        found += children.get(process, [])
    return {process: used[process] for process in found[1:]}


def mebibytes(process, file, name):
    """A line of a file in /proc/PID; 0 where the process has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/{file}").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    return 0.0


def measure(command):
    """Run it to its end and to that of all that it has started."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans are ours
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    own = whole = looked = 0.0
    used, seconds = {}, None
    while now := processes():
        used |= now
        if time.perf_counter() - looked > EVERY_MEMORY:
            looked = time.perf_counter()
            own = max(own, mebibytes(process.pid, "status", "VmHWM:"))
            whole = max(whole, sum(mebibytes(p, "smaps_rollup", "Pss:") for p in now))
        if process.poll() is not None:
            seconds = seconds or time.perf_counter() - started
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        with suppress(subprocess.TimeoutExpired):
            process.wait(EVERY)
        if seconds:
            time.sleep(EVERY)
    return {
        "exit_code": process.returncode,
        "seconds": round(seconds or time.perf_counter() - started, 2),
        "cpu_seconds": round(sum(used.values()), 2),
        "command_mib": round(own),
        "all_mib": round(whole),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1:])))
