"""``python -m ccaco_cli``."""

from ccaco_cli.app import main

if __name__ == "__main__":
    main()
