"""The built-in world: Xiaoman (小满镇), a harbour town whose facts are known, so a program can tell a good answer."""
