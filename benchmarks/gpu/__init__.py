"""For GPUs: device time (``timing``), the conformance suite on a device (``conformance``), and without one what the
compilers say: registers (``cuda_registers``, ``triton_registers``) and the launch table (``tune_triton``).

Run them in the folder above: ``cd benchmarks && python -m gpu.tune_triton``.
"""
