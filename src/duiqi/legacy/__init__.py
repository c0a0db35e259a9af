"""Commands and recipes of other tools, read with their old meaning. Light: nothing here imports torch."""
