"""What a run has found, for people: report.html with its explorer, tables, the README's part."""
