"""The command line: every command is a few lines around `fallow.Client` or `fallow.LocalCluster`."""
