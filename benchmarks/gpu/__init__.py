"""For GPUs: device time (``timing``), the conformance suite on a device (``conformance``), and without one what the
compilers say: registers (``cuda_registers``, ``triton_registers``) the launch table (``tune_triton``), and
what a row costs in machine code (``machine_code``, ``row_paths``; ``sass.py`` in the folder above).

Run them in the folder above: ``cd benchmarks && python -m gpu.tune_triton``.
"""
