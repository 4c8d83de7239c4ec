"""Held-out sessions: which are played, what is kept of them, and the scores, intervals and differences made of it.

`plan.py` first; the commands over this room are `ppp/evaluate.py` and `ppp/evaluation/compare_cli.py`.
"""
