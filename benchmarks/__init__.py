"""How well, how fast and in how much memory tilereg works, beside other methods.

``python -m benchmarks NAME`` runs one benchmark; see `benchmarks.__main__`.
"""
