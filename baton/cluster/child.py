"""`baton` as a process that does not outlive the thread that started it (Linux).

    python -m baton.cluster.child PARENT_PID <arguments of baton>

The child sees to it itself, once it runs. Code between fork and exec, where the parent could do it, makes
a real fork of the parent, and what libraries do at a fork (gRPC above all, while it has calls under way)
now and then ends the child.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int) -> None:
    """However the parent ends, SIGTERM follows. Elsewhere a parent that is killed leaves orphans."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:  # it ended before
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    end_with_parent(int(sys.argv.pop(1)))
    from baton.cli.main import main

    main(prog_name="baton")
