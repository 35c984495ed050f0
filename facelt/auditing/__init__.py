"""The audit: whose errors, in which groups, how unequal and how sure."""

from facelt.auditing.run import audit

__all__ = ["audit"]
