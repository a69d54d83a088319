"""`python -m gateway`: the command line, wherever the package was found."""

from gateway.cli.main import main

if __name__ == "__main__":
    main()
