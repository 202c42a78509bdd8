"""Formats of models, rows of `table.FORMATS`: model folders, runs, the hub, the files of other projects."""
