"""The explorer: pages and JSON that show one host's registry. It reads as any worker does, and may report calls."""
