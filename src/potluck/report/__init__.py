"""Reports: from run folders to one self-contained HTML page. Reads files only."""

from __future__ import annotations

from potluck.report.page import write_report

__all__ = ["write_report"]
