"""Language models: shapes, components, the engine that moves one component at a time, loading."""
