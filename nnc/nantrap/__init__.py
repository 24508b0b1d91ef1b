"""Where the first value that is not finite was made (`nan_trap`)."""
