"""As many threads as the process may use, waiting without spinning, unless the user decided otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from byheart.cli.threads import choose, count_cpus, prepare
from tests.samples import ROOT

UNLIMITED = 10_000
"""More processors than any machine that runs the tests."""


def write(root: Path, **files: str) -> Path:
    """A fake file system; ``__`` in a name stands for a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def version_2(root: Path, group: str, **limits: str) -> Path:
    """A system with control groups of version 2: ``cpu.max`` of some groups, and the group of this process."""
    write(root, proc__self__cgroup=f"0::{group}\n")
    for name, limit in limits.items():
        folder = root / "sys/fs/cgroup" / name.replace("__", "/").removeprefix("top").lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(limit, encoding="utf-8")
    return root


@pytest.fixture
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose affinity allows every processor of a large machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(UNLIMITED)), raising=False)


# ---- the policy ----


def test_threads_soon_sleep_while_they_wait_and_are_as_many_as_may_run() -> None:
    assert choose({}, 3, "linux") == {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "3"}
    assert choose({}, 3, "linux", serves=True) == {"GOMP_SPINCOUNT": "30000", "OMP_NUM_THREADS": "3"}
    assert choose({}, 3, "darwin") == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "3"}


@pytest.mark.parametrize(
    ("environ", "chosen"),
    [
        ({"OMP_NUM_THREADS": "1"}, {"GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_NUM_THREADS": "8"}),
        ({"OMP_WAIT_POLICY": "", "OMP_NUM_THREADS": ""}, {}),
        ({"GOMP_SPINCOUNT": "5"}, {"OMP_NUM_THREADS": "8"}),
        ({"PATH": "/bin"}, {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "8"}),
    ],
)
def test_what_the_user_set_is_left_alone(environ: dict[str, str], chosen: dict[str, str]) -> None:
    before = dict(environ)
    assert choose(environ, 8, "linux") == chosen
    assert environ == before


def test_nothing_is_set_where_torch_is_loaded_already() -> None:
    assert "torch" in sys.modules
    environ: dict[str, str] = {}
    prepare(environ)
    assert environ == {}


def test_preparing_sets_what_was_chosen_before_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    environ = {"OMP_WAIT_POLICY": "ACTIVE"}
    prepare(environ)
    assert environ == {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": str(count_cpus())}


# ---- how many processors ----


def test_there_is_always_one() -> None:
    assert 1 <= count_cpus() <= (os.cpu_count() or 1)


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 5, 7}, raising=False)
    assert count_cpus(tmp_path) == 3


@pytest.mark.parametrize(("known", "expected"), [(6, 6), (None, 1)])
def test_without_affinity_all_processors_count(
    known: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: known)
    assert count_cpus(tmp_path) == expected


@pytest.mark.usefixtures("many_cpus")
class TestVersion2:
    @pytest.mark.parametrize(
        ("limit", "expected"),
        [
            ("200000 100000", 2),
            ("150000 100000", 2),
            ("100001 100000", 2),
            ("100000 100000", 1),
            ("5000 100000", 1),
            ("max 100000", UNLIMITED),
            ("", UNLIMITED),
            ("nonsense", UNLIMITED),
            ("0 0", UNLIMITED),
        ],
    )
    def test_a_quota_is_rounded_up(self, tmp_path: Path, limit: str, expected: int) -> None:
        assert count_cpus(version_2(tmp_path, "/", top=limit)) == expected

    def test_the_group_of_the_process_counts_and_that_of_others_does_not(self, tmp_path: Path) -> None:
        root = version_2(tmp_path, "/jobs/mine", jobs__mine="300000 100000", jobs__other="100000 100000")
        assert count_cpus(root) == 3

    def test_the_smallest_quota_on_the_way_up_counts(self, tmp_path: Path) -> None:
        root = version_2(tmp_path, "/a/b/c", a__b__c="max 100000", a__b="400000 100000", a="500000 100000", top="max 1")
        assert count_cpus(root) == 4

    def test_a_path_of_the_machine_outside_a_container_is_no_error(self, tmp_path: Path) -> None:
        """The container sees its own limit at the top, whatever its group is called outside."""
        assert count_cpus(version_2(tmp_path, "/docker/0123abcd", top="250000 100000")) == 3

    def test_a_group_name_may_hold_colons(self, tmp_path: Path) -> None:
        root = version_2(tmp_path, "/app:one", top="max 100000")
        write(root / "sys/fs/cgroup/app:one", **{"cpu.max": "200000 100000"})
        assert count_cpus(root) == 2

    def test_affinity_below_the_quota_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
        assert count_cpus(version_2(tmp_path, "/", top="400000 100000")) == 1


@pytest.mark.usefixtures("many_cpus")
class TestVersion1:
    GROUPS = "12:memory:/jobs\n4:cpu,cpuacct:/jobs\n3:cpuset:/\n1:name=systemd:/init\n"

    def system(self, root: Path, group: str, quota: str, period: str = "100000") -> Path:
        write(root, proc__self__cgroup=self.GROUPS)
        files = {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": period}
        write(root / "sys/fs/cgroup/cpu,cpuacct" / group, **files)
        # A limit of another controller is no number of processors.
        write(root / "sys/fs/cgroup/memory/jobs", **{"cpu.max": "100000 100000"})
        return root

    @pytest.mark.parametrize(
        ("quota", "period", "expected"),
        [
            ("200000\n", "100000\n", 2),
            ("25000", "50000", 1),
            ("75000", "50000", 2),
            ("-1", "100000", UNLIMITED),
            ("0", "100000", UNLIMITED),
            ("100000", "0", UNLIMITED),
        ],
    )
    def test_quota_over_period_is_rounded_up(self, tmp_path: Path, quota: str, period: str, expected: int) -> None:
        assert count_cpus(self.system(tmp_path, "jobs", quota, period)) == expected

    def test_the_quota_of_a_group_above_counts(self, tmp_path: Path) -> None:
        assert count_cpus(self.system(tmp_path, "", "300000")) == 3

    def test_a_quota_without_its_period_is_none(self, tmp_path: Path) -> None:
        root = self.system(tmp_path, "jobs", "100000")
        (root / "sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_period_us").unlink()
        assert count_cpus(root) == UNLIMITED


# ---- the command line ----


@pytest.mark.parametrize("user", [{}, {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "7"}])
def test_a_command_sets_them_before_torch_is_imported(user: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import os, sys, byheart.cli\n"
        "try: byheart.cli.main(['list'])\n"
        "except SystemExit: pass\n"
        "print(os.environ.get('GOMP_SPINCOUNT'), os.environ['OMP_NUM_THREADS'])\n"
    )
    clean = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    environ = {**clean, **user, "BYHEART_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    policy = choose({}, 1).get("GOMP_SPINCOUNT")
    expected = f"{user.get('GOMP_SPINCOUNT', policy)} {user.get('OMP_NUM_THREADS', count_cpus())}"
    assert ran.stdout.splitlines()[-1] == expected


def test_importing_the_library_sets_nothing() -> None:
    code = "import os, byheart; byheart.Store; print(sorted(name for name in os.environ if 'OMP_' in name))"
    environ = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    environ["PYTHONPATH"] = str(ROOT)
    ran = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
