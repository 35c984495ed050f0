"""Reports: one JSON truth, drawn as HTML, tables and terminal output."""
