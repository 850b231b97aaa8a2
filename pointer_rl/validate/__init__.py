"""Validation of RL data files."""

from pointer_rl.validate.report import Finding, Report, Unchecked
from pointer_rl.validate.validator import ValidationConfig, validate_file

__all__ = ["Finding", "Report", "Unchecked", "ValidationConfig", "validate_file"]
