"""Reports: JSON schema, HTML page, CSV and terminal tables."""
