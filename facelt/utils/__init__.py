"""Utilities without torch: text, tables, JSON values, command-line errors."""
