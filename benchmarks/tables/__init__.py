"""What is shown of the results: README's table (``speed``), those of docs/benchmarks.md by subject (``ops``, ``steps``,
``searches``, ``cost``, ``peers``), the plots (``charts``), and the model of cost that is fitted to times (``cost_model``).
``markdown`` writes a table. Nothing here measures; nothing here needs a GPU, a model or the package's compiled part.
"""
