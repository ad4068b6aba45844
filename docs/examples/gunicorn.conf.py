"""Gunicorn's settings for `flask_shop`."""

preload_app = True
workers = 2
threads = 8

# Longer than a request may wait for its locks and work: gunicorn kills a worker of the class
# `sync` that is silent for so long, and what the worker holds stays until its lease is over.
timeout = 60

# How long requests that are under way may take when the server is told to stop.
graceful_timeout = 30
