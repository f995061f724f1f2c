"""Services over a library each: errors, devices, checkpoints, metrics, files."""
