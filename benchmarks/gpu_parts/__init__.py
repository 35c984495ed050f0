"""Parts of the GPU check, which benchmarks/gpu_check.py runs."""
