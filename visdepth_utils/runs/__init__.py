"""A run: its settings, its folder of tables, where shards are measured, and what it will cost."""
