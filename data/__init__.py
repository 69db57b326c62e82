"""Everything that is known about the toy world; nothing here imports torch or the training scripts."""
