"""Who runs where. Pure: a snapshot in, a plan out."""
