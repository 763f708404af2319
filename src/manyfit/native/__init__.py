"""One member's training as one compiled function: what a CPU runs a small network with."""
