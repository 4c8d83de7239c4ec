"""How far user models can be trusted: `ppp users check`.

`measures.py` holds the labelled cases and the numbers, `asking.py` asks the models, `cli.py` is the command. The cases
themselves are in `ppp/labelled/`.
"""
