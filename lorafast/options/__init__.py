"""What a user may ask for: declared once, for the command line, files of options and help."""
