"""The page as on a ZeroGPU Space, with the real `spaces` package and no GPU: `python tests/zero_gpu.py app.py`.

What that package does to PyTorch, to show a call its GPU, needs a PyTorch with CUDA. It is left out as the package
itself leaves it out where there is no PyTorch; scheduling, forking and the end of a call are as on the Space.
"""

import os
import runpy
import sys


sys.modules["torch"] = None
import spaces  # noqa: E402, F401


del sys.modules["torch"]
sys.argv = sys.argv[1:]  # as the program sees it
sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
runpy.run_path(sys.argv[0], run_name="__main__")
