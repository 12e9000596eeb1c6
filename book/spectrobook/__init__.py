"""What the chapters, the benchmarks and the remaking of shipped files need, and a measurement does not."""
