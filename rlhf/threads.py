"""How PyTorch's threads wait for each other: briefly, so that training keeps its speed beside other programs.

OpenMP's threads spin for milliseconds while they wait. Where more threads are busy than there are cores, they take the
cores from the very thread that they wait for. A short spin keeps most of what a long one wins on an idle machine.
OpenMP reads its variables once, when PyTorch is loaded. The number of threads stays as it is, because the last bits of
a sum depend on it.
"""

import os


WAITING = {
    "GOMP_SPINCOUNT": "10000",  # GCC's OpenMP, in PyTorch for Linux: turns of the loop; 300,000 by default
    "KMP_BLOCKTIME": "0",  # LLVM's and Intel's, for macOS and Windows: milliseconds; 200 by default
}
"""How long a thread spins before it sleeps."""
VARIABLES = {*WAITING, "OMP_WAIT_POLICY"}
"""All variables that say how threads wait."""


def wait_briefly() -> None:
    """Set the variables for this process and its children, unless the user has set one. PyTorch is not loaded yet."""
    if not os.environ.keys() & VARIABLES:
        os.environ.update(WAITING)
