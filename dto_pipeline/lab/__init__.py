"""The laboratory: synthetic crowds with known truth, benchmarks, recorded reference cases, solver comparisons, the
demo's data. It proves the pipeline and no run needs it: only `commands` may import it.
"""
