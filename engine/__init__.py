"""Everything that knows torch or the command line: data, models, training, stages, report."""
