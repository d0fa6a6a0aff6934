"""ccaco: Contrastive + Cross-Attention Collaborative Optimization for cross-modal alignment."""

__version__ = "0.1.0.dev0"
