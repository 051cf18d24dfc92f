"""A finished run in use: predictions, evaluation, explanation, export; nothing here trains."""
