"""For GPUs. A run within a deadline (``check``): its ``stages``, each ``boxed``, what is kept of it (``keeping``), what is taken along
(``bundle``), and what stages run: ``smoke``, ``conformance``, ``op_speed``, ``exact_calls``, ``triton_ahead``, ``marked_tests``. Device
time (``timing``) in ``graphs``, which are ``recorded`` where there is no GPU (``stand_in``). And without one what the compilers say:
registers (``cuda_registers``, ``triton_registers``), the launch table (``tune_triton``), and what a row costs in machine
code (``machine_code``, ``row_paths``; ``sass.py`` in the folder above).

Run them in the folder above: ``cd benchmarks && python -m gpu.tune_triton``.
"""
