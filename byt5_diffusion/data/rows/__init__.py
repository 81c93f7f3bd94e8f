"""Rows of big files by number: tables, indexes, catalogues, order."""
