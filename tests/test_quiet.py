"""Native code and children are silenced, Python's own messages are not."""

import subprocess
import sys

SCRIPT = """
import os, subprocess, sys
from cocu_jax.quiet import quiet_libraries
with quiet_libraries():
    os.write(2, b"native\\n")
    subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write('child')"])
    print("progress", file=sys.stderr)
os.write(2, b"after\\n")
print("python", file=sys.stderr)
try:
    with quiet_libraries():
        raise RuntimeError("told")
except RuntimeError as error:
    print(error, file=sys.stderr)
"""


def test_only_python_itself_is_heard():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stderr.split()) == (0, ["progress", "after", "python", "told"])
