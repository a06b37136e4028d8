"""Studies: the paper's two, that of pruned models, the choice of a dose; with their figures and reports.

A study is a configuration and one runner a kind. Everything measured is a trial, a line of JSON that is found again, so
that a study can be stopped at any moment. Modules are imported by name: each study pulls in what it needs.
"""
