"""Reports: one JSON truth, drawn as HTML, tables and terminal output."""

from facelt.report.audit_terminal import print_audit
from facelt.report.terminal import print_report
from facelt.report.write import write_report

__all__ = ["print_audit", "print_report", "write_report"]
