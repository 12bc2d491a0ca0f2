"""Plain values that flow between the stages. Imports nothing outside the standard library."""
