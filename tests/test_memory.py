"""The memory that is left is the least of what anything around the process leaves."""

import sys

import pytest

from aiocodec import memory
from aiocodec.memory import available_memory, group_limit

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it does not tell")
MIB = 1 << 20
FILES = {  # of a control group, by the version: limit, usage, what of it can be dropped at once
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """A system with 1000 MiB and 24 of swap, whose process is in the given groups."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    (proc / "meminfo").write_text(f"MemAvailable: {1000 << 10} kB\nSwapFree: {24 << 10} kB\n")
    monkeypatch.setattr(memory, "PROC", proc)
    monkeypatch.setattr(memory, "GROUPS", groups)

    def within(lines):
        (proc / "self" / "cgroup").write_text(lines)
        return groups

    return within


def group(folder, version, limit, used, cached=0):
    folder.mkdir(parents=True, exist_ok=True)
    usage, stat = f"{used * MIB}\n", f"anon 5\n{FILES[version][2]} {cached * MIB}\n"
    for name, text in zip(FILES[version], (f"{limit}\n", usage), strict=False):
        (folder / name).write_text(text)
    (folder / "memory.stat").write_text(stat)


def test_without_groups_it_is_that_of_the_machine(linux):
    linux("0::/\n")
    assert available_memory() == 1024 * MIB and group_limit() is None


def test_of_nested_groups_the_tightest_counts(linux):
    root = linux("0::/user.slice/job.scope/step\n")
    group(root / "user.slice", 2, 900 * MIB, 100)
    group(root / "user.slice" / "job.scope", 2, 300 * MIB, 250, 30)
    group(root / "user.slice" / "job.scope" / "step", 2, "max", 200)
    group(root / "other", 2, MIB, 1)  # of others
    assert available_memory() == 80 * MIB and group_limit() == 300 * MIB
    group(root / "user.slice", 2, 900 * MIB, 950)
    assert available_memory() == 0 and group_limit() == 300 * MIB


@pytest.mark.parametrize("shown", ["", "docker/0123"])
def test_a_container_knows_its_limit_whatever_it_is_called(linux, shown):
    root = linux("0::/docker/0123\n")
    group(root / shown, 2, 500 * MIB, 200)
    assert available_memory() == 300 * MIB and group_limit() == 500 * MIB


def test_the_first_version_has_a_tree_for_memory(linux):
    root = linux("5:cpu,cpuacct:/\n4:hugetlb,memory:/job\n1:name=systemd:/a:b\n0::/\n")
    group(root / "memory", 1, 9223372036854771712, 3000)  # none
    assert available_memory() == 1024 * MIB and group_limit() is None
    group(root / "memory" / "job", 1, 400 * MIB, 350, 100)
    assert available_memory() == 150 * MIB and group_limit() == 400 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere its size is not told")
def test_an_address_space_has_a_limit_of_its_own(python):
    script = """
import resource
from aiocodec.memory import available_memory
limit = 300 << 20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(available_memory() < limit)
"""
    assert python(script).strip() == "True"


def test_where_nothing_is_told_nothing_is_known(tmp_path, monkeypatch):
    for name in ("PROC", "GROUPS"):
        monkeypatch.setattr(memory, name, tmp_path)
    assert available_memory() is None and group_limit() is None
