"""The operating system: files written whole, memory and cgroups, processes and threads."""
