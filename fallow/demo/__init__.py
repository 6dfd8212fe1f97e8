"""The demo: a local cluster that trains a model, loses nodes, gets them back and serves the result.

Everything it says and writes is measured in that run, through the client and the operating system.
"""
