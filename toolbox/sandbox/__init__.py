"""Runs generated Python confined: no network, no other process, bounded time, memory and files (`evaluate`, HumanEval).

`running.py` is for callers. All else is imported by the confined processes, which see the standard library alone.
"""
