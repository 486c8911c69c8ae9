"""Figures: one script each. Danlu, its peer and the physical limit in the same run. ``make benchmarks`` runs them all."""
