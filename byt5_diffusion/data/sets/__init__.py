"""Published data sets' own formats, as annotated pictures."""
