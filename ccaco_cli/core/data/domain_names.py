"""Names of splits and results across domains. It imports nothing, so that reports of stored results start fast."""

TARGET_VAL, SOURCE_TEST = "val-target", "test-source"
"""Splits: rows of the target domain for validation, and rows of the source domains for the test."""
ORACLE = "oracle"
"""Name of the checkpoint, and of the results, that were chosen with the labels of the target domain."""
DOMAIN_EMBEDDINGS = "domains.json"
"""File in the results of a run: embeddings of both domains before and after training."""
