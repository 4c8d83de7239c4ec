"""What `ppp play` is made of: which sessions (`choosing.py`), the agent at work (`watching.py`), how it went
(`outcome.py`). The command itself is `ppp/play.py`.
"""
