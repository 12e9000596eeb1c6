"""The files that ship with the project, made again: `python -m spectrobook NAME`."""
