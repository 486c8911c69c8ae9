"""What users do: one module per noun, one transaction per call, an Actor in each."""
