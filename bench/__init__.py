"""Benchmarks: nnc beside its peers, in alternation in one process, medians and ratios."""
