"""Chat models behind any OpenAI-compatible endpoint: everything between "ask this" and an answer that can be used.

`gateway.py` first: one call in, one text out. `endpoint.py` is what a recipe says of a model, `connection.py` the HTTP
client, `failures.py` and `limits.py` why and when to try again, `cache.py` and `ledger.py` what is kept and counted,
`structured.py` answers that fit a schema. Nothing here knows users or prompts.
"""
