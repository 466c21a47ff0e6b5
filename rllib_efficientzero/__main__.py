"""`python -m rllib_efficientzero` runs the `rllib` command without its console script."""

from rllib_efficientzero.cli.main import main

if __name__ == "__main__":
    main()
