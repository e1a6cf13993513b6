"""The service: HTTP, store, controller, tracking, predictions, supervisor, client and command line."""
