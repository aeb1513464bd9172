"""A disk that is full is one line, whatever was being written."""

import shutil
import subprocess

import pytest
from processes import finish, start

pytestmark = pytest.mark.slow

MOUNT = "mount -t tmpfs -o size={size}k none {workdir} && exec"


@pytest.mark.parametrize("size", [100, 2000, 5000])  # no checkpoint fits; one; two
def test_full_disk_is_one_line(scenes_config, tmp_path, size):
    unshare = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"]).returncode:
        pytest.skip("no namespace of one's own for a small disk")
    config = scenes_config.copy_and_resolve_references()
    config.total_steps = 40
    workdir = tmp_path / "run"
    workdir.mkdir()
    shell = MOUNT.format(size=size, workdir=workdir)
    [process] = start(config, workdir, prefix=[*unshare, "sh", "-c", f'{shell} "$@"', "sh"])
    assert process.wait(300) == 2
    lines = (tmp_path / "run.0.log").read_text().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and "No space left on device" in errors[0]
    assert "free some space" in errors[0]
    assert not any("Traceback" in line for line in lines)
    finish(start(config, workdir), workdir)  # the same place, with space
