"""一锤定音 (yichuidingyin): one key from a bare machine to a fine-tuned, proven, served model."""

__version__ = "0.1.0"
