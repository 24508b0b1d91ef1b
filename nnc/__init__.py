"""nnc: a compiler from a textual neural-network language to native kernels."""
