"""Chat models behind any OpenAI-compatible endpoint: everything between "ask this" and an answer that can be used.

`gateway.py` first: one call in, one text (or one turn of an agent) out. `endpoint.py` is what a recipe says of a model,
`connection.py` the HTTP client, `checking.py` whether the endpoint can be used, `bodies.py` and `messages.py` what is
sent and read, `failures.py` and `limits.py` why and when to try again, `cache.py` and `ledger.py` what is kept and
counted, `structured.py` answers that fit a schema. Nothing here knows users, agents or prompts.
"""
