"""The process: composition of the parts, threads, lifecycle, and what people see of it."""
