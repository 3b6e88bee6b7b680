"""Runs side by side: a table in Markdown and CSV, and a page with everything that they recorded."""
