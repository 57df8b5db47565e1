"""For all tests: Triton kernels run through Triton's interpreter where there is no GPU.

Triton reads the variable when it is imported, and several libraries import it, so this must come before any test module.
"""

import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
