"""The command line: one file per command, tables and `--json` in `output`, the demonstration in `demo`.

It imports anything; nothing imports it. A command parses, calls, prints and exits with 0 (done), 1 (failed),
2 (bad input) or 3 (refused by a safety rule); what it prints for people goes through `output`.
"""
