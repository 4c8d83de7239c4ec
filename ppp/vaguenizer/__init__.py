"""Precise texts made vague (PPP section 2.1): `ppp vaguenize`.

`rewriting.py` first: one text in, one that passed every check out. `checks.py` says what a vague text must be like,
`specifics.py` and `gold_names.py` find what must not be in it, `rows.py` keeps the files, `report.py` tells what was
removed, `cli.py` is the command.
"""
