"""``python -m ke_tools``: the same as the console script ``ke-tools``."""

from ke_tools.cli import main

if __name__ == "__main__":
    main()
