"""Runs the Gluon kernels on a CPU: their own functions, with torch in place of ``gl`` and of Hopper's instructions.

Gluon has no interpreter. Here every function of the kernels' modules runs as it is written, one program after another,
and every operation on a tile is one operation of torch. What that proves: the arithmetic, the addresses of global and
of shared memory (an access outside raises), the padding of shared memory, and the order of events in a program, by
these rules, each of which raises ``Hazard``:

* what one thread stores another reads, or overwrites, only after a barrier, and so for what it has read;
* shared memory is read only where it was written, in elements of the size they were written in (bytes of words aside);
* a copy is read after it was waited for and a barrier; tensor cores also want a fence before that barrier;
* what tensor cores read is overwritten only after their product was waited for and a barrier;
* a product is used only after it was waited for, and nothing is under way at the end.

What it does not prove: that the compiler and the GPU do the same with registers (layouts are ignored) and with memory
(threads are not run apart), nor anything about speed. What a kernel is compiled to is counted by
``benchmarks/kernel_report.py``; whether it is right on a GPU, the trial before a run asks there.
"""

from tests.gluon_emulation.kernels import emulated_kernels
from tests.gluon_emulation.memory import Hazard

__all__ = ["Hazard", "emulated_kernels"]
