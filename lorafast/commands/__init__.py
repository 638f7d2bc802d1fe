"""The commands, a module each.

A command's module has `run(options) -> exit status`. It is imported only when its command runs, for it may be slow to
import.
"""
