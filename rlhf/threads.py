"""What many threads cost: how PyTorch's wait for each other, and how the page's share memory.

PyTorch's threads wait briefly, so that training keeps its speed beside other programs. OpenMP's threads spin for
milliseconds while they wait. Where more threads are busy than there are cores, they take the cores from the very
thread that they wait for. A short spin keeps most of what a long one wins on an idle machine. OpenMP reads its
variables once, when PyTorch is loaded. The number of threads stays as it is, because the last bits of a sum depend on
it.
"""

import ctypes
import os
import threading
import time
from contextlib import suppress


WAITING = {
    "GOMP_SPINCOUNT": "10000",  # GCC's OpenMP, in PyTorch for Linux: turns of the loop; 300,000 by default
    "KMP_BLOCKTIME": "0",  # LLVM's and Intel's, for macOS and Windows: milliseconds; 200 by default
}
"""How long a thread spins before it sleeps."""
VARIABLES = {*WAITING, "OMP_WAIT_POLICY"}
"""All variables that say how threads wait."""
M_ARENA_MAX = -8
"""Of glibc's mallopt(3): how many pools there may be that threads allocate memory from; by default eight per core."""


def wait_briefly() -> None:
    """Set the variables for this process and its children, unless the user has set one. PyTorch is not loaded yet."""
    if not os.environ.keys() & VARIABLES:
        os.environ.update(WAITING)


def share_memory(every: float = 60) -> None:
    """Have all threads of this process allocate from two pools of memory, and give back what is free in them every so
    many seconds, where the C library is glibc.

    A pool keeps what any of its threads once needed. A server has forty threads, each of which answers now and then:
    with a pool for every few of them its memory grows for hours. By itself a pool gives back only what is free at its
    end. MKL, which multiplies matrices for PyTorch, keeps the buffers of threads that are gone; here it keeps none.
    """
    os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")  # read when PyTorch is loaded

    def give_back() -> None:
        while True:
            time.sleep(every)
            libc.malloc_trim(0)  # malloc_trim(3)

    with suppress(OSError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_ARENA_MAX, 2)
        threading.Thread(target=give_back, daemon=True).start()
