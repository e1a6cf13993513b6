"""The command line, one module a group of commands; service.cli puts them together."""
