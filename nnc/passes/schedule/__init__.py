"""How kernels are arranged: loop spaces, contractions, merged axes, loop kinds."""
