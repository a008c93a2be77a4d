"""Networks: building them from a config, inspecting them, loading their weights; and losses."""
