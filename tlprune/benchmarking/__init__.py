"""Methods side by side: one table at equal effective edges, with what each row cost."""

from tlprune.benchmarking.command import Plan as Plan
from tlprune.benchmarking.command import bench as bench
from tlprune.benchmarking.running import benchmark as benchmark
