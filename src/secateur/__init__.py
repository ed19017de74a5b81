"""Prune a trained PyTorch network in one cut, guided by a teacher."""
