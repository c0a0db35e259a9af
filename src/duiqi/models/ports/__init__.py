"""Networks of 2023 whose code lay beside their weights, written anew for today's transformers: no code is fetched.

`registry` says which network a config.json belongs to.
"""
