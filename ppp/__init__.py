"""PPP: a trainer for agents that are productive, proactive and personalized. Start with `types.py`."""

__version__ = "0.1.0"
