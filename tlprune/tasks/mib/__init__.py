"""The tasks of the circuit track of MIB, the Mechanistic Interpretability Benchmark."""
