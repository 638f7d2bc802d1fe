"""The errors a user can meet. A message is one line: what is wrong, where (byte offset, tensor, option), what to do."""


class LoraFastError(Exception):
    """Something outside the program stands in the way: a file, the disk, the machine. The command line prints it."""

    exit_status = 1


class UsageError(LoraFastError):
    """The command line itself is wrong: an unknown option, a number that is none."""

    exit_status = 2


class FormatError(LoraFastError):
    """A file is broken, or of a kind that lorafast does not read."""


class TemplateRefusal(LoraFastError):
    """A chat template cannot render these messages: it says so itself, or it uses something that they do not have."""
