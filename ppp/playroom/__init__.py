"""What `ppp play` is made of: the command line (`settings.py`), which sessions (`choosing.py`), playing them
(`game.py`), the agent at work (`watching.py`), how it went (`outcome.py`).
"""
