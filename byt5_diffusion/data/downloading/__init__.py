"""Strangers' pictures fetched behind a guard."""
