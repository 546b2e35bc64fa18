"""The door: batches commands, loads, decides, commits, answers; scanners and scheduler beside it."""
