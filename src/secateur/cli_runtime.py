"""The runtime on the command line: compile, time, and the benchmark of the engine."""
