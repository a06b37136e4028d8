"""``python -m steerfast``: the command line."""

from steerfast.cli import main

if __name__ == "__main__":
    main()
