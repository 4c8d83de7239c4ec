"""What runs look like afterwards: tables, figures, and one HTML page with every conversation.

`content.py` says what a report consists of; the command over this room is `ppp/report.py`.
"""
