"""Agents that speak messages instead of tokens: a model behind an endpoint, a Python function, a person.

`base.py` says what an agent is, `engine.py` lets the pool play it like any engine, `build.py` makes that pool. The
agents are in `endpoint.py`, `function.py` and `person.py`; what their turns mean is read in `turns.py`.
"""
