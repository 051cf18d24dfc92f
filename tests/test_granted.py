"""What a container is given of its machine: cores and memory by control groups of both versions."""

from __future__ import annotations

import ctypes

import pytest
import torch

from burnish import api, doctor, granted, imports, runtime
from burnish.granted import available_bytes, given_cores
from burnish.runtime import Nobody
from burnish.train import around


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"groups": root / "groups", "own": root / "own"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"own": "0::/\n", "groups/cpu.max": "200000 100000\n"}, 2.0),
        ({"own": "0::/pods/one\n", "groups/pods/one/cpu.max": "max 100000\n", "groups/pods/cpu.max": "50000 100000\n"}, 0.5),
        ({"own": "0::/pods/one\n", "groups/pods/one/cpu.max": "150000 100000\n", "groups/pods/cpu.max": "400000 100000\n"}, 1.5),
        ({"own": "0::/user\n", "groups/user/cpu.max": "max 100000\n"}, None),
        ({"own": "0::/../other\n", "groups/cpu.max": "300000 100000\n"}, 3.0),
        (
            {"own": "5:memory:/m\n4:cpu,cpuacct:/docker/abc\n0::/\n", "groups/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
             "groups/cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        (
            {"own": "1:cpu:/\n0::/\n", "groups/cpu/cpu.cfs_quota_us": "-1\n", "groups/cpu/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        ({"own": "0::/\n", "groups/cpu.max": "words\n"}, None),
        ({"own": "nothing of the kind\n"}, None),
        ({}, None),
    ],
    ids=["two", "of the pod", "the least", "none", "elsewhere", "version 1", "version 1, none", "spoilt", "spoilt list", "no groups"],
)  # fmt: skip
def test_the_time_of_so_many_cores_is_what_the_groups_around_the_process_give(tmp_path, files, cores):
    assert given_cores(**tree(tmp_path, files)) == cores


@pytest.mark.parametrize(("given", "cores"), [(None, 8), (2.0, 2), (1.5, 2), (0.2, 1), (64.0, 8)])
def test_cores_are_no_more_than_are_given_and_no_fewer_than_one(monkeypatch, given, cores):
    monkeypatch.setattr(granted, "bound_cores", lambda: 8)
    monkeypatch.setattr(granted, "given_cores", lambda: given)
    assert granted.cores() == cores


def test_memory_is_what_the_machine_has_and_the_container_leaves(tmp_path):
    """Files that were read count as taken, and are given up: a machine full of them was told to close other programs."""
    meminfo = {"meminfo": "MemTotal: 24000000 kB\nMemFree: 500000 kB\nMemAvailable: 21000000 kB\n", "own": "0::/\n"}
    asked = {"told": tmp_path / "meminfo", **tree(tmp_path, meminfo)}
    assert available_bytes(**asked) == 21_000_000 * 1024
    tree(tmp_path, {"groups/memory.max": "3000000000\n", "groups/memory.current": "2500000000\n",
                    "groups/memory.stat": "anon 900\nfile 1200000000\nshmem 200000000\n"})  # fmt: skip
    assert available_bytes(**asked) == 1_500_000_000
    tree(tmp_path, {"groups/memory.max": "max\n"})
    assert available_bytes(**asked) == 21_000_000 * 1024
    (tmp_path / "meminfo").write_text("MemTotal: 24000000 kB\n")
    assert available_bytes(**asked) == available_bytes(**{**asked, "told": tmp_path / "none"}) > 0


def test_memory_of_version_1_without_a_limit_is_the_machines(tmp_path):
    files = {
        "own": "4:memory:/box\n",
        "meminfo": "MemAvailable: 1000 kB\n",
        "groups/memory/box/memory.limit_in_bytes": f"{2**63 - 4096}\n",
        "groups/memory/box/memory.usage_in_bytes": "5000\n",
        "groups/memory/box/memory.stat": "total_cache 4000\ntotal_shmem 0\n",
    }
    asked = {"told": tmp_path / "meminfo", **tree(tmp_path, files)}
    assert available_bytes(**asked) == 1_024_000
    tree(tmp_path, {"groups/memory/box/memory.limit_in_bytes": "50000\n"})
    assert available_bytes(**asked) == 49_000


@pytest.fixture
def of_eight(monkeypatch):
    """A container of three cores, on a machine of eight."""
    monkeypatch.setattr(granted, "bound_cores", lambda: 8)
    monkeypatch.setattr(granted, "given_cores", lambda: 3.0)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("user", [{}, {"OMP_NUM_THREADS": "6"}, {"MKL_NUM_THREADS": "6"}])
def test_threads_are_as_many_as_cores_are_given_unless_the_user_says_how_many(of_eight, user):
    environment = dict(user)
    imports.settle_threads(environment)
    assert {**environment, "GOMP_SPINCOUNT": ""} == {**(user or {"OMP_NUM_THREADS": "3"}), "GOMP_SPINCOUNT": ""}


def test_without_a_limit_the_libraries_say_how_many_threads_they_take(monkeypatch):
    monkeypatch.setattr(granted, "given_cores", lambda: None)
    assert granted.threads_to_take({}) is None


def test_a_notebook_that_loaded_torch_with_a_thread_for_each_core_has_fewer_within_a_run(of_eight):
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        with around.settled_torch():
            assert torch.get_num_threads() == 3
            with around.settled_torch():
                assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 8
    finally:
        torch.set_num_threads(before)


def test_the_doctor_says_what_the_container_is_given(of_eight, monkeypatch):
    for module in (granted, doctor):
        monkeypatch.setattr(module, "bound_cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    found = doctor._processor()
    assert "3 cores of 8, by a limit of the container, torch uses 8 threads" in str(found)
    assert "OMP_NUM_THREADS=3" in found.remedy


def test_a_run_with_little_memory_says_so_first_and_gives_back_what_it_frees(shapes, tmp_path, monkeypatch):
    """With freed memory kept a run of hand signs was ended by the system in a container of 1.1 GB; without it takes 0.9."""
    said, kept, real = [], [], ctypes.CDLL

    class Listening(Nobody):
        def say(self, text):
            said.append(text)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: kept.append(name) or real(name))
    monkeypatch.setattr(granted, "_own_bytes", lambda: 1_000_000)
    monkeypatch.setattr(granted, "available_bytes", lambda: 100_000_000)
    api.fit(shapes, model="random:test_resnet", image_size=32, method="probe", budget=None, out=tmp_path / "run",
            cache="off", watcher=Listening())  # fmt: skip
    assert granted.LITTLE_MEMORY in said and "libc.so.6" not in kept
    monkeypatch.setattr(granted, "available_bytes", lambda: 2_000_000_000)
    runtime.keep_freed_memory()
    assert not granted.has_little_memory() and "libc.so.6" in kept
