"""The data plane: prepared datasets, gradient workers, the aggregator, the exchange between them, the trainer."""
