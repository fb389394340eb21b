"""The programs: each parses its arguments, calls the library and prints."""
