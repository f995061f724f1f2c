"""What is done with a run: train it, evaluate it, pool the votes of its checkpoints."""
