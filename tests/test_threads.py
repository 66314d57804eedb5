"""How threads wait: said before PyTorch is loaded, by programs only, never against the user. OpenMP itself tells.

And how they share memory."""

import json
import platform
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import torch
from processes import ROOT, serving

from rlhf.bench.measurement import SPIN
from rlhf.threads import VARIABLES
from rlhf.write.report import write_report


gcc = pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has another OpenMP here")


@pytest.fixture(autouse=True)
def openmp_tells(monkeypatch):
    """No variable is set, and GCC's OpenMP writes to standard error what it has read."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")


@gcc
def test_a_command_waits_briefly_and_ends_at_a_mistake_without_a_traceback(rlhf, tmp_path):
    done = rlhf("reward", "--dataset_name", "nowhere.jsonl", "--output_dir", "out")  # loads PyTorch, then refuses
    told, _, said = done.stderr.rpartition("OPENMP DISPLAY ENVIRONMENT END\n")
    assert "GOMP_SPINCOUNT = '10000'" in told
    assert done.returncode == 2 and said == "error: There is no file nowhere.jsonl; check the path.\n"
    assert list(tmp_path.iterdir()) == []


@gcc
@pytest.mark.process
@pytest.mark.parametrize(
    ("variable", "value", "read"), [("GOMP_SPINCOUNT", "77", "77"), ("OMP_WAIT_POLICY", "PASSIVE", "0")]
)
def test_what_a_user_says_about_waiting_stands(monkeypatch, variable, value, read):
    monkeypatch.setenv(variable, value)
    code = "from rlhf import threads; threads.wait_briefly(); import torch"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert f"GOMP_SPINCOUNT = '{read}'" in done.stderr


@gcc
@pytest.mark.process
def test_the_page_waits_briefly(tmp_path):
    """So does what it starts: a process inherits the environment, and on a Space is passed these variables."""
    log = tmp_path / "log"
    with serving(log, RLHF_RUNS=str(tmp_path / "runs"), GRADIO_SERVER_PORT="0"):
        deadline = time.monotonic() + 60
        while "GOMP_SPINCOUNT = " not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
    assert "GOMP_SPINCOUNT = '10000'" in log.read_text()


ALLOCATE = """
import ctypes, threading
from rlhf import threads
if {shared}:
    threads.share_memory()
libc, all_there = ctypes.CDLL("libc.so.6"), threading.Barrier(20)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
def allocate():
    all_there.wait()
    libc.malloc(ctypes.c_size_t(5000))
    all_there.wait()
workers = [threading.Thread(target=allocate) for _ in range(20)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
file = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.process
@pytest.mark.parametrize("shared", [True, False])
def test_the_pages_threads_share_two_pools_of_memory(shared):
    """glibc itself tells how many there are."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library")
    done = subprocess.run([sys.executable, "-c", ALLOCATE.format(shared=shared)], cwd=ROOT, capture_output=True)
    pools = done.stdout.count(b"<heap nr=")
    assert pools == 2 if shared else pools > 2, done.stderr


FREE = """
import ctypes, time, psutil
from rlhf import threads
if {shared}:
    threads.share_memory(every=0.1)
libc, process = ctypes.CDLL("libc.so.6"), psutil.Process()
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
before = process.memory_info().rss
blocks = [libc.malloc(ctypes.c_size_t(60_000)) for _ in range(2_000)]
for block in blocks:
    ctypes.memset(block, 1, 60_000)
for block in blocks[:-1]:  # the last stands at the pool's end, which alone is given back by itself
    libc.free(block)
deadline = time.monotonic() + {seconds}
while time.monotonic() < deadline and process.memory_info().rss - before > 20e6:
    time.sleep(0.1)
print((process.memory_info().rss - before) / 1e6)
"""


@pytest.mark.process
@pytest.mark.parametrize("shared", [True, False])
def test_memory_that_is_free_is_given_back(shared):
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library")
    code = FREE.format(shared=shared, seconds=60 if shared else 1)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    held = float(done.stdout)
    assert held < 20 if shared else held > 100, done.stderr


MULTIPLY = """
import ctypes, threading
from rlhf import threads
if {shared}:
    threads.share_memory()
import torch
class Mallinfo2(ctypes.Structure):
    _fields_ = [("each", ctypes.c_size_t * 10)]
libc = ctypes.CDLL("libc.so.6")
libc.mallinfo2.restype = Mallinfo2
torch.set_num_threads(1)
a, b, together = torch.randn(2_000, 256), torch.randn(256, 1_024), threading.Barrier(20)
def multiply(rows):
    together.wait()
    for _ in range(3):
        a[:rows] @ b
def in_use():
    workers = [threading.Thread(target=multiply, args=(100 * number + 5,)) for number in range(20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return libc.mallinfo2().each[7] / 1e6
a[:1] @ b
before = libc.mallinfo2().each[7] / 1e6
print(max(in_use() - before for _ in range(20)))
"""


@pytest.mark.process
@pytest.mark.parametrize("shared", [True, False])
def test_threads_that_are_gone_leave_no_buffers_of_mkl(shared):
    if platform.libc_ver()[0] != "glibc" or not torch.backends.mkl.is_available():
        pytest.skip("another C library, or PyTorch without MKL")
    code = MULTIPLY.format(shared=shared)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    kept = float(done.stdout)
    assert kept < 0.5 if shared else kept > 0.5, done.stderr


@pytest.mark.process
def test_the_library_leaves_the_environment_alone():
    read = "{name: os.environ.get(name) for name in rlhf.threads.VARIABLES}"
    code = f"import os, rlhf.threads; before = {read}; import rlhf.__main__, rlhf.ppo; print(before == {read})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr[-500:]


@pytest.mark.process
def test_the_benchmark_beside_busy_loops_ends_them_and_its_table_enters_the_report(command, tmp_path):
    small = ("--batch_size", 8, "--micro_batch_size", 8, "--response_length", 6, "--use_cpu", "true")
    done = command("bench", "ppo", "--busy", 1, "--rounds", 1, "--seconds", 1, *small, "--json", "busy.json")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "busy.json").read_text())
    assert found["loops"] == [0, 1] and found["environment"] == {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "0"}
    for name in ("shipped", "spinning"):
        assert len(found["medians"][name]) == 2 and min(found["medians"][name]) > 0
        assert f"median, {name}" in done.stdout
    left = [
        process.info for process in psutil.process_iter(["cmdline", "cwd"]) if SPIN in (process.info["cmdline"] or ())
    ]
    assert str(tmp_path) not in [process["cwd"] for process in left]
    left_out = shutil.ignore_patterns("model", "samples.jsonl", "compare")
    demo = shutil.copytree(ROOT / "assets" / "example", tmp_path / "demo", ignore=left_out)
    shutil.copy(tmp_path / "busy.json", demo)
    text = write_report(demo, tmp_path / "REPORT.md", demo / "sweep", demo / "methods").read_text()
    start = text.index("| threads |")
    header, rule, *rows = text[start : text.index("\n\n", start)].splitlines()
    assert header == "| threads | idle | 1 busy loop |" and rule == "|---|---|---|"
    assert [row.split(" |")[1].strip() for row in rows] == [
        f"{found['medians'][name][0]:.1f}" for name in found["medians"]
    ]


def test_a_busy_loop_ends_with_the_process_that_started_it():
    starter = f"import subprocess, sys, os; subprocess.Popen([sys.executable, '-c', {SPIN!r}, str(os.getpid())])"
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE) as process:
        # The loop holds the pipe open for as long as it lives.
        assert process.stdout.read() == b"" and process.wait() == 0
