"""What the PERF requirements are measured with: a mock engine, a load generator, the peers, the report, the bars.

`python -m benchmarks` measures and prints the report; `python -m benchmarks.check` also holds the
results against the bars. README.md says what each load is and how to read the numbers.
"""
