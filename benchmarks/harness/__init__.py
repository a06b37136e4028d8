"""How things are measured, whatever they are: turns (``timing``), what a series of times comes to (``spreads``), where it
was measured (``machine``), the options of a script (``script``), result files (``results``) and two commits of them
(``regression``); and what the scripts share: steerings and operands of the ops (``op_forms``), random Llamas (``shapes``), and
what is compared: ways of computing an op (``op_runners``), of decoding (``decode_runners``), of searching a grid (``sweep_runners``).
"""
