"""Task stores: `MemoryTaskStore`, `SqliteTaskStore` and the `TaskStore` protocol."""
