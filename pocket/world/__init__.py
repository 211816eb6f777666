"""The pocket world: people with known numbers, what is said of them, and how they are drawn."""
