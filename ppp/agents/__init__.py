"""Agents that speak messages instead of tokens: a model behind an endpoint, a Python function, a person.

`base.py` says what an agent is and lets the pool play it like any engine.
"""
