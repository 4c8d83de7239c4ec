"""Software issues as tasks: patches, labels, rows, mirrors and trees, mining.

The tools of the agent and its score are in `ppp/environments/func_loc.py`. Begin with `labels.py`.
"""
