"""What every other folder may stand on: files, checkpoints on disk, progress, errors."""
