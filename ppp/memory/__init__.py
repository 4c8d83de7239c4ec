"""What a recipe needs of each GPU and of the host, computed from the model's config before anything is loaded.

`workload.py` says what is asked for, `trace.py` what a pass through the layers allocates, `engines.py` what generation
takes, `plan.py` adds it up, `advice.py` says what to do about it. `scripts/memory_plan.py` prints all of it.
"""
