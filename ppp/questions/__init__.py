"""How a question is put, read by rules: `rules.py` holds the verdicts, the others what they stand on.

`sentences.py` finds prose and sentences, `languages.py` the language of a sentence, `options.py` labelled options,
`excerpts.py` quoted lines and their source. The table of preferences that uses them is `ppp/preferences.py`.
"""
