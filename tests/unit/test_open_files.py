"""The limit of open files, raised in a process of its own."""

import subprocess
import sys

RAISE = """
import resource
from router.open_files import raise_limit

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
raise_limit()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
raise_limit()  # nothing is left to raise
"""


def test_the_soft_limit_becomes_the_hard_one() -> None:
    subprocess.run([sys.executable, "-c", RAISE], check=True)
