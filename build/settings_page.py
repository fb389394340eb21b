"""docs/settings.md: every setting, with the default that the code has and who reads it."""

from unified_embedding.cli.settings_page import program

if __name__ == "__main__":
    program()
